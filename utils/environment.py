"""Versions, device and commit of a run."""

import functools
import platform
import subprocess

import torch

from utils.distributed import WORLD_SIZE
from utils.paths import ROOT


def describe(device, precision):
    """One line with versions, device, precision and commit. Repeated runs with the same line give the same bits."""
    return f"{versions(device, precision)}, commit {commit() or 'unknown'}"


def versions(device, precision):
    """The part of `describe` without the commit of this project."""
    import torchvision  # see utils/datasets.py

    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}"
    else:
        where = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if WORLD_SIZE > 1:
        where += f", {WORLD_SIZE} processes"
    software = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    return f"{software}, {where}, {precision}"


@functools.cache  # a process keeps the code that it has loaded
def commit():
    """The short hash of the current commit, with "-dirty" if source files differ from it; "" without git."""
    try:
        head = git("rev-parse", "--verify", "--quiet", "--short=10", "HEAD")
        changed = head and git("status", "--porcelain", "--", "*.py", ":!tests")
    except FileNotFoundError:
        return ""
    return head + ("-dirty" if changed else "")


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
