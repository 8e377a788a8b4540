"""Measure the peak rate of the machine, and the floating-point operations and memory of a training step."""

import gc
import os
import resource
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import model
from benchmarks.pipelines import now

REPEATS = 10


def matmul_peak(device, precision, size=None):
    """FLOP/s of the fastest of several square matrix products. size: default 8192 on CUDA, 4096 on the CPU.

    Matrix products use TF32 if convolutions do, so that a network's share of the peak is below 100 %.
    """
    size = size or (8192 if device.type == "cuda" else 4096)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, before = float("inf"), torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    for _ in range(REPEATS):
        start = now(device)
        torch.mm(a, b)
        best = min(best, now(device) - start)
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / best


def step_flops(network, kind, spec):
    """FLOP per image of a training step. The backward pass counts as two forward passes.

    If there is a frozen network, its forward pass counts, too. network: name of the trained and of the frozen network.
    """
    with torch.device("meta"):
        module = model.build(network, spec.num_classes, spec.image_size).eval()
        images = torch.empty(1, 3, spec.image_size, spec.image_size)
    with FlopCounterMode(display=False) as counter:
        module.head(module.features(images))
    return counter.get_total_flops() * (3 if kind == "normal" else 4)


def reset_memory(device):
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device):
    """Peak memory in bytes: on a GPU the memory allocated since `reset_memory`, otherwise that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor():
    """The CPU's name and its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {os.cpu_count()} cores"


def write_profile(path, title, device, work):
    """Profile the function `work`, and append a table of kernel times to the file `path`."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        work()
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{title}\n{table}\n\n")
