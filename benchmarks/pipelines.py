"""The pipelines that `benchmarks/epoch.py` compares: ours here, and that of the released code in reference.py.

A pipeline has a `loader` and a method `train(part)`, which runs a training step on each batch of a Part of the loader.
"""

import itertools
import time

import torch

import method
from method.datafree import Generating
from method.inversion import invert
from training import engine
from training import params as parameters
from training.zoo import Zoo
from utils import data
from utils.cuda_graph import Recorder
from utils.errors import UserError

DATA_FREE = {"dafl": 1024, "dfad": 256, "deepinversion": 256}  # attacks without data: their published batch sizes
# {kind of step: name of the method}
KINDS = {"normal": "scratch", "nasty": "nasty", "kd": "kd"} | {name: name for name in DATA_FREE}


def settings(network, kind, batch_size, precision, cuda_graph=False):
    """The checked parameters of a run on CIFAR-10 with steps of `kind`, a key of KINDS.

    The frozen network has the architecture of the trained one. The learning rate is small, so that training with random
    weights and labels does not diverge. batch_size: None means 128, or the published one for an attack without data.
    """
    teacher = {"teacher_model": network, "teacher_resume": "random"}
    frozen = {
        "normal": {},
        "nasty": {"adversarial_model": network, "adversarial_resume": "random", "temperature": 4, "weight": 0.04},
        "kd": teacher | {"temperature": 4, "alpha": 0.9},
    }
    batch_size = batch_size or DATA_FREE.get(kind, 128)
    common = {"dataset": "cifar10", "num_epochs": 1, "learning_rate": 0.001, "schedule": [], "gamma": 0.1}
    common |= {"method": KINDS[kind], "model_name": network, "batch_size": batch_size, "precision": precision}
    common |= {"cuda_graph": cuda_graph}
    return parameters.check(common | frozen.get(kind, teacher), "benchmark")


def load_data(data_dir, device, images=50_000):
    """CIFAR-10 from `data_dir`, or `images` random images of the same shape if it is not available."""
    try:
        return data.load("cifar10", data_dir, device)
    except UserError as error:
        spec, generator = data.DATASETS["cifar10"], torch.Generator().manual_seed(0)
        shape = images, spec.image_size, spec.image_size, 3
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.randint(spec.num_classes, (images,), generator=generator)
        split = data.Split(pixels.to(device), labels.to(device))
        return data.Dataset("cifar10", spec, split, split, split, f"{images} random images ({error})")


class RandomZoo(Zoo):
    """A Zoo whose frozen networks have random weights. The weights do not change the time of a step."""

    def frozen(self, name, path):
        return self.freeze(self.fresh(name))


def make_method(params, dataset, device):
    return method.find(params.method)(params, RandomZoo(dataset.spec, device, params.precision == "bf16"))


class Ours:
    """The pipeline of the training scripts: their loader, method, optimizer and training step."""

    def __init__(self, params, dataset, device):
        self.method = make_method(params, dataset, device)
        self.optimizer = engine.make_optimizer(params, self.method.model)
        self.recorder = Recorder(self.method, self.optimizer, device, print) if params.cuda_graph else None
        self.loader = dataset.train_loader(params.batch_size, params.augmentation, prefetch=params.cuda_graph)
        if isinstance(self.method, Generating):
            self.loader = Iterations(self.method, self.loader)
            self.method.batches = iter  # `loader` already yields the batches of the method

    @property
    def recorded(self):
        """Whether steps are replayed as a CUDA graph."""
        return bool(self.recorder and self.recorder.active)

    def train(self, part):
        engine.train_epoch(self.method, self.method.losses, part, self.optimizer, "ours", self.recorder)


class Iterations:
    """The batches of an attack with a generator. `len` is the number of iterations, of `per_step` batches each."""

    def __init__(self, attack, loader):
        self.batches, self.loader = attack.batches, loader
        self.per_step = attack.student_steps

    def __iter__(self):
        return iter(self.batches(self.loader))

    def __len__(self):
        return len(self.batches(self.loader)) // self.per_step


class Inverting:
    """The steps of DeepInversion on the pixels of a batch of images. The steps of its student are those of kd.

    A batch needs `inversion_steps` steps, so n steps count as n / `inversion_steps` of the images of a batch.
    """

    def __init__(self, params, dataset, device):
        self.method = make_method(params, dataset, device)
        self.labels = torch.arange(params.batch_size, device=device) % dataset.spec.num_classes
        self.loader = range(params.inversion_steps)
        self.log_lines = []

    @property
    def recorded(self):
        """Whether steps are replayed as a CUDA graph."""
        return any(line.startswith("Recorded") for line in self.log_lines)

    def train(self, part):
        log = self.log_lines.append if self.method.params.cuda_graph else None
        for steps in filter(None, (part.warmup, part.steps)):  # only the last one is timed
            options = self.method.settings() | {"log": log, "steps": steps}
            part.start = now(part.device)
            invert(self.method.teacher.teacher, self.labels, **options)
        part.end = now(part.device)
        part.images = part.steps * len(self.labels) / len(self.loader)


class Part:
    """The first `warmup` + `steps` steps of a loader. `start` and `end` are the times around the last `steps` steps.

    A step has one batch, or `loader.per_step` batches. Times are taken after the device has finished its work. With
    warmup 0 they include the start of the epoch: our pipeline samples random numbers, and the reference starts worker
    processes.
    """

    def __init__(self, loader, steps, warmup, device):
        self.loader, self.steps, self.warmup, self.device = loader, steps, warmup, device
        self.per_step = getattr(loader, "per_step", 1)

    def __getattr__(self, name):
        """Return other attributes of the loader, such as `epoch`."""
        return getattr(self.loader, name)

    def __len__(self):
        return (self.warmup + self.steps) * self.per_step

    def __iter__(self):
        self.start, self.images = now(self.device), 0
        batches = iter(self.loader)
        yield from itertools.islice(batches, self.warmup * self.per_step)
        if self.warmup:
            self.start = now(self.device)
        for batch in itertools.islice(batches, self.steps * self.per_step):
            self.images += len(batch[0])
            yield batch
        # The time is taken here, because a DataLoader stops its workers when this function ends.
        self.end = now(self.device)

    @property
    def seconds_per_image(self):
        return (self.end - self.start) / self.images


def timed(pipeline, steps, warmup, device):
    """Train on the first `warmup` + `steps` steps of an epoch. Returns their Part, which times the last `steps`."""
    part = Part(pipeline.loader, steps, warmup, device)
    pipeline.train(part)
    return part


def seconds_to_load(loader, device):
    """Seconds per image of one pass over the loader without training."""
    start = now(device)
    for _ in loader:
        pass
    return (now(device) - start) / len(loader.split)


def now(device):
    """Wait until the device has finished its work. Returns the time in seconds, on a clock that all processes share."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
