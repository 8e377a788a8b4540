"""One run over several processes, as `torchrun --nproc_per_node=N train_*.py …` starts them."""

import os

from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join(device):
    """Meet the other processes of this run, if it has any."""
    if WORLD_SIZE > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave():
    if dist.is_initialized():
        dist.destroy_process_group()


class Step(nn.Module):
    """`method.losses` as a module that owns what is trained, which is what DistributedDataParallel wraps."""

    def __init__(self, method):
        super().__init__()
        self.trained, self.losses = method.trained, method.losses

    def forward(self, *batch):
        return self.losses(*batch)


def parallel(method, device):
    """A function of a batch that returns `method.losses`, its gradients averaged over the processes.

    Batch norm sees the whole batch on GPUs (SyncBatchNorm), and each process's own share on the CPU, where PyTorch
    has no other.
    """
    if WORLD_SIZE == 1:
        return method.losses
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method.trained)  # in place
    return DistributedDataParallel(Step(method))


def add_up(tensor):
    """The sum of a tensor over all processes."""
    if WORLD_SIZE > 1:
        dist.all_reduce(tensor)
    return tensor
