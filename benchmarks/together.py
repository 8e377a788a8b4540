"""Measure the total throughput of several runs at once on one device, each in a separate process."""

import multiprocessing
import os

import torch

from benchmarks.pipelines import Ours, Part, load_data
from training import engine
from utils.errors import UserError

PASSES = {"cpu": 1, "cuda": 5}  # repetitions of the timed steps, because processes do not start at the same time


def throughput(count, params, data_dir, images, steps, warmup):
    """Images per second of `count` processes together, from the start of the first to the end of the last.

    Each process has its own data, network, optimizer and share of the CPU's threads, as in reproduce.py --jobs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.together"])  # imports PyTorch once, not once per process
    threads = max(1, (os.cpu_count() or 1) // count)
    workers = []
    try:
        for _ in range(count):
            own_end, worker_end = context.Pipe()
            process = context.Process(target=work, args=(worker_end, params, data_dir, images, steps, warmup, threads))
            process.daemon = True
            process.start()
            worker_end.close()
            workers.append((process, own_end))
        for _, pipe in workers:
            pipe.recv()
        for _, pipe in workers:
            pipe.send("go")
        starts, ends, trained = zip(*[pipe.recv() for _, pipe in workers], strict=True)
        for process, _ in workers:
            process.join()
    except (EOFError, OSError):
        raise UserError(f"--together {count}: one of the processes failed; see its error message above") from None
    finally:
        for process, _ in workers:
            process.terminate()
            process.join()
    return sum(trained) / (max(ends) - min(starts))


def work(pipe, params, data_dir, images, steps, warmup, threads):
    """Warm up, send "ready", wait for a message, train, and send (start, end, images)."""
    torch.set_num_threads(threads)
    device = engine.pick_device()
    ours = Ours(params, load_data(data_dir, device, images), device)
    if warmup:
        ours.train(Part(ours.loader, warmup, 0, device))
    pipe.send("ready")
    pipe.recv()
    parts = [Part(ours.loader, steps, 0, device) for _ in range(PASSES[device.type])]
    for part in parts:
        ours.train(part)
    pipe.send((parts[0].start, parts[-1].end, sum(part.images for part in parts)))
