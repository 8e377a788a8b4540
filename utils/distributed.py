"""One run with several processes, started by `torchrun --nproc_per_node=N train_*.py …`."""

import os

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join(device):
    """Join the process group of this run, if it has several processes."""
    if WORLD_SIZE > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave():
    """Leave the process group, if `join` was called."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Step(nn.Module):
    """`method.losses` as a module that has the trained weights, as DistributedDataParallel requires."""

    def __init__(self, method):
        super().__init__()
        self.trained, self.losses = method.trained, method.losses

    def forward(self, *batch):
        return self.losses(*batch)


def parallel(method, device):
    """`method.losses` as a function of a batch. The gradients of the loss are averaged over the processes.

    On GPUs, batch norm uses the statistics of the whole batch (SyncBatchNorm). On the CPU, where PyTorch has no
    SyncBatchNorm, each process uses the statistics of its share.
    """
    if WORLD_SIZE == 1:
        return method.losses
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method.trained)  # in place
    return DistributedDataParallel(Step(method))


def weighted(loss, images):
    """`loss`, scaled so that its mean over processes is the mean over all images.

    loss: the mean over the `images` images of this process.
    """
    if WORLD_SIZE == 1:
        return loss
    total = sum_over_processes(torch.tensor(float(images), device=loss.device))
    return loss * (images * WORLD_SIZE / total)


def sum_over_processes(tensor):
    """The sum of a tensor over all processes. Changes the tensor in place."""
    if WORLD_SIZE > 1:
        dist.all_reduce(tensor)
    return tensor
