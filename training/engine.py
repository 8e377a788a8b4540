"""The training loop of all methods, and the choice of device, precision and optimizer."""

import ctypes
import os
import sys
import time
from functools import partial
from operator import length_hint

import torch
from tqdm import tqdm

from utils import distributed
from utils.cuda_graph import Recorder
from utils.epochs import get_lr, seed_everything
from utils.errors import Diverged, UserError
from utils.metrics import Means

CHECK_EVERY = 50  # steps between two checks of the running loss; each check waits for the device
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
NEVER = 2**31 - 1  # bytes: the largest value that mallopt takes
HINT = "Try a smaller learning_rate, a smaller weight of the term that grew, or clip_grad_norm (such as 5)."


def make_optimizer(params, network):
    """SGD or Adam, depending on `params`, in PyTorch's fused implementation."""
    weights, common = network.parameters(), {"lr": params.learning_rate, "weight_decay": params.weight_decay}
    if params.optimizer == "adam":
        return torch.optim.Adam(weights, **common, fused=True)
    return torch.optim.SGD(weights, **common, momentum=params.momentum, fused=True)


def pick_device(gpu_id=None):
    """GPU number `gpu_id` (default: 0, or the local rank under torchrun) if there is a GPU, else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_id is None:
        gpu_id = int(os.environ.get("LOCAL_RANK", 0))
    if count == 0:
        keep_freed_memory()
        return torch.device("cpu")
    if not 0 <= gpu_id < count:
        raise UserError(f"--gpu_id {gpu_id}: there are {count} GPUs, numbered from 0")
    torch.cuda.set_device(gpu_id)
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", gpu_id)


def keep_freed_memory():
    """Let glibc keep freed memory, so that the system does not zero the pages at each new allocation.

    This saves 2 to 10 % of the time of a training step on the CPU. Other memory allocators are not changed.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD) if mallopt else ():
            mallopt(option, NEVER)


def has_bf16(device):
    """Whether the hardware multiplies bfloat16 matrices natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(precision, device):
    """ "fp32" or "bf16": the key `precision`, with "auto" resolved for this device."""
    return ("bf16" if has_bf16(device) else "fp32") if precision == "auto" else precision


def train_epoch(method, losses, loader, optimizer, title, recorder=None, clip_grad_norm=0.0):
    """Train on `method.batches(loader)` once. Returns (Means of the loss terms, queries); raises Diverged on NaN.

    losses: `method.losses`, or its wrapper if several processes train together. title: text for the progress bar.
    recorder: a Recorder, if steps are run as a CUDA graph. clip_grad_norm: largest norm of the gradient; 0: no limit.
    queries: the number of images that a teacher answered.
    """

    def step(*batch):
        terms = losses(*batch)
        if "loss" not in terms:
            raise UserError(f'{type(method).__name__}.losses: must return a dictionary with "loss"')
        optimizer.zero_grad(set_to_none=True)
        distributed.weighted(terms["loss"], len(batch[0])).backward()
        if clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(method.trained.parameters(), clip_grad_norm, foreach=True)
        optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    method.trained.train()
    means = Means()
    disable = True if distributed.RANK else None  # None: no progress bar without a terminal
    batches = method.batches(loader)
    run_step = partial(recorder, step) if recorder else step
    queries = 0
    with tqdm(total=length_hint(batches, len(loader)), desc=title, unit="step", leave=False, disable=disable) as bar:
        for number, batch in enumerate(batches, 1):
            means.add(run_step(*batch), len(batch[0]))
            queries += method.queries(batch)
            if number % CHECK_EVERY == 0:
                loss = means.values()["loss"]
                rate = means.images / max(bar.format_dict["elapsed"] or 0, 1e-9)
                bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} images/s", refresh=False)
            bar.update()
    means = means.over_processes()
    means.values()  # raises Diverged
    return means, queries


def train(method, loader, part, eval_loader, params, run, until):
    """Train `method` until epoch `until`, starting after the last finished epoch of `run`, a `folder.Run`.

    part: "test" or "validation": which images `eval_loader` has. Each epoch is evaluated on them. Raises Diverged if
    the loss is NaN or infinite.
    """
    optimizer = make_optimizer(params, method.trained)
    first = run.restore(method, optimizer)
    device = next(method.model.parameters()).device
    losses = distributed.parallel(method, device)
    recorder = Recorder(method, optimizer, device, run.log) if params.cuda_graph else None
    method.begin(run)
    for epoch in range(first, until):
        start = time.perf_counter()
        seed_everything(params.seed, epoch)
        loader.set_epoch(epoch)
        lr = get_lr(params.learning_rate, params.schedule, params.gamma, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        title = f"Epoch {epoch + 1}/{params.num_epochs}"
        run.log(title)
        try:
            clip = params.clip_grad_norm
            means, queries = train_epoch(method, losses, loader, optimizer, title, recorder, clip)
            seconds = time.perf_counter() - start
            scores = method.evaluate(eval_loader)
        except Diverged as error:
            raise Diverged(f"{title}: the loss is not finite any more: {error}. {HINT} {run.fallback()}") from None
        metrics = {
            "epoch": epoch + 1,
            "lr": lr,
            "train": means.values(),
            part: scores,
            **({"queries": queries} if queries else {}),
            "seconds": round(seconds, 3),
            "images_per_second": round(means.images / seconds, 1),
        }
        run.end_epoch(method, optimizer, metrics)
