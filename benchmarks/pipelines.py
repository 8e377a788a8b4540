"""The pipelines that `benchmarks/epoch.py` compares: this project's here, the released code's in reference.py.

A pipeline has a `loader`, and `train(loader)` runs a training step on each of its batches.
"""

import itertools
import time

import torch

import method
from model.zoo import Zoo
from utils import data, engine
from utils import params as parameters
from utils.errors import UserError

KINDS = {"normal": "scratch", "nasty": "nasty", "kd": "kd"}


def settings(network, kind, batch_size, precision):
    """Checked parameters of a run on CIFAR-10 whose steps are those of `kind`, a key of KINDS.

    The frozen network of a nasty or kd step has the architecture of the trained one. The learning rate is small,
    so that random weights and labels do not diverge.
    """
    frozen = {
        "normal": {},
        "nasty": {"adversarial_model": network, "adversarial_resume": "random", "temperature": 4, "weight": 0.04},
        "kd": {"teacher_model": network, "teacher_resume": "random", "temperature": 4, "alpha": 0.9},
    }
    common = {"dataset": "cifar10", "num_epochs": 1, "learning_rate": 0.001, "schedule": [], "gamma": 0.1}
    common |= {"method": KINDS[kind], "model_name": network, "batch_size": batch_size, "precision": precision}
    return parameters.check(common | frozen[kind], "benchmark")


def load_data(data_dir, device, images=50_000):
    """CIFAR-10 from `data_dir`, or `images` random images of its shape where it is not to be had."""
    try:
        return data.load("cifar10", data_dir, device)
    except UserError as error:
        spec, generator = data.DATASETS["cifar10"], torch.Generator().manual_seed(0)
        shape = images, spec.image_size, spec.image_size, 3
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.randint(spec.num_classes, (images,), generator=generator)
        split = data.Split(pixels.to(device), labels.to(device))
        return data.Dataset("cifar10", spec, split, split, f"{images} random images ({error})")


class RandomZoo(Zoo):
    """Its frozen networks have random weights: a step takes as long with any."""

    def frozen(self, name, path):
        return self.fresh(name).eval().requires_grad_(False)


class Ours:
    """What the training scripts run: loader, method, optimizer and the engine's own steps."""

    def __init__(self, params, dataset, device):
        zoo = RandomZoo(dataset.spec, device, params.precision == "bf16")
        self.method = method.find(params.method)(params, zoo)
        self.optimizer = engine.make_optimizer(params, self.method.model)
        self.loader = dataset.train_loader(params.batch_size, params.augmentation)

    def train(self, loader):
        engine.train_epoch(self.method, self.method.losses, loader, self.optimizer, "ours")


class Part:
    """The first `warmup` + `steps` batches of a loader, with `start` and `end` of the training on the last `steps`.

    Both are taken when the device has done its work. With warmup 0 the start of the epoch is timed too: the draws of
    ours, the worker processes of the reference.
    """

    def __init__(self, loader, steps, warmup, device):
        self.loader, self.steps, self.warmup, self.device = loader, steps, warmup, device

    def __getattr__(self, name):
        """Whatever else the engine and methods ask a loader for, such as `epoch` and `weight`."""
        return getattr(self.loader, name)

    def __len__(self):
        return self.warmup + self.steps

    def __iter__(self):
        self.start, self.images = now(self.device), 0
        batches = iter(self.loader)
        yield from itertools.islice(batches, self.warmup)
        if self.warmup:
            self.start = now(self.device)
        for images, labels in itertools.islice(batches, self.steps):
            self.images += len(labels)
            yield images, labels
        # Here rather than after the loop, since a DataLoader's workers are stopped when this function ends.
        self.end = now(self.device)


def seconds_per_image(pipeline, steps, warmup, device):
    """Train on the first batches of an epoch: seconds per image, those of the first `warmup` steps left out."""
    part = Part(pipeline.loader, steps, warmup, device)
    pipeline.train(part)
    return (part.end - part.start) / part.images


def seconds_to_load(loader, device):
    """Seconds per image of a pass that shuffles, gathers and augments, and does nothing with the batches."""
    start = now(device)
    for _ in loader:
        pass
    return (now(device) - start) / len(loader.split)


def now(device):
    """Seconds on a clock that all processes share, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
