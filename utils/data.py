"""Data sets that live on the device as uint8, and the loaders that assemble their batches there.

`load` gives a Dataset; its `train_loader` and `test_loader` give Loaders. A batch is (images, labels): images
float32 (B, 3, H, W), normalised, in channels_last memory format; labels int64 (B,).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils import datasets
from utils.augment import augment, draw, normalise
from utils.errors import UserError, suggest

SUBSET_SEED = 230
AHEAD = 2048  # images that are assembled at once on a GPU: launching a batch's kernels takes longer than running them


@dataclass(frozen=True)
class Spec:
    """What is known of a data set without reading it. Images are (3, image_size, image_size)."""

    num_classes: int
    image_size: int
    train_size: int
    test_size: int
    mean: tuple
    std: tuple
    augmentation: tuple  # names of `augment.draw`


CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
TINY_MEAN, TINY_STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)

DATASETS = {
    "cifar10": Spec(10, 32, 50_000, 10_000, CIFAR_MEAN, CIFAR_STD, ("crop", "flip")),
    "cifar100": Spec(100, 32, 50_000, 10_000, CIFAR_MEAN, CIFAR_STD, ("crop", "flip")),
    "tiny_imagenet": Spec(200, 64, 100_000, 10_000, TINY_MEAN, TINY_STD, ("rotate", "flip")),
    # A mirrored digit is another sign: no flip. Mean and deviation are those of the training half.
    "digits": Spec(10, 32, 898, 899, (0.3051,) * 3, (0.3227,) * 3, ("crop",)),
}


@dataclass(frozen=True)
class Split:
    images: torch.Tensor  # uint8 (N, H, W, 3)
    labels: torch.Tensor  # int64 (N,)

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    name: str
    spec: Spec
    train: Split
    test: Split
    summary: str  # one line for the log

    def train_loader(self, batch_size, augmentation=True, seed=0, rank=0, world_size=1, ahead=False, role=0):
        """Shuffled batches. UserError where a process would be left with one image, too few for batch norm.

        ahead: on a GPU, assemble several batches at once. role: see `Loader`.
        """
        smallest = (len(self.train) % batch_size or batch_size) // world_size
        if smallest < 2:
            raise UserError(
                f"batch_size {batch_size}: {len(self.train)} images leave a process {smallest} in the last batch; "
                "batch norm needs 2: choose another batch_size or subset_percent"
            )
        kinds = self.spec.augmentation if augmentation else ()
        loader = Loader(self.train, self.spec, batch_size, kinds, True, seed, rank, world_size, role=role)
        if ahead and self.train.images.is_cuda:
            loader.together = max(1, AHEAD // batch_size)
        return loader

    def test_loader(self, batch_size=1000):
        return Loader(self.test, self.spec, batch_size)


class Loader:
    """Batches of a split: every image once an epoch; the last batch may be smaller.

    Order and augmentation are a function of (seed, epoch, role), the same on every device. Loaders with one seed and
    different roles shuffle and augment independently of each other. Of several processes, process `rank` is given
    every `world_size`-th image of each batch: together they see what one would. `weight` is what the loss of the
    current share must be multiplied by for its mean over processes to be that of the batch. `together` is how many
    batches are assembled at once, which changes no pixel of them.
    """

    def __init__(self, split, spec, batch_size, augmentation=(), shuffle=False, seed=0, rank=0, world_size=1, role=0):
        self.split, self.batch_size = split, batch_size
        self.augmentation, self.shuffle = augmentation, shuffle
        self.seed, self.epoch, self.role = seed, 0, role
        self.rank, self.world_size, self.weight = rank, world_size, 1.0
        self.mean = torch.tensor(spec.mean, device=split.images.device)
        self.std = torch.tensor(spec.std, device=split.images.device)
        self.together = 1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return -(-len(self.split) // self.batch_size)

    def __iter__(self):
        order, draws = self.plan()
        starts = range(0, len(self.split), self.batch_size)
        for first in range(0, len(starts), self.together):
            some = starts[first : first + self.together]
            shares = [slice(start + self.rank, start + self.batch_size, self.world_size) for start in some]
            index, *drawn = (torch.cat([values[share] for share in shares]) for values in (order, *draws.values()))
            images, labels = self.assemble(index, dict(zip(draws, drawn, strict=True)))
            sizes = [len(order[share]) for share in shares]
            for start, size, *batch in zip(some, sizes, images.split(sizes), labels.split(sizes), strict=True):
                self.weight = size * self.world_size / min(self.batch_size, len(self.split) - start)
                yield tuple(batch)

    def plan(self):
        """The epoch's order, int64 (N,), and its draws, in that order; drawn on the CPU, sent once."""
        count, device = len(self.split), self.split.images.device
        # A hash, so that seed 0's epoch 1 is not seed 1's epoch 0.
        numbers = (self.seed, self.epoch, self.role) if self.role else (self.seed, self.epoch)
        state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        draws = draw(self.augmentation, count, generator)
        return order.to(device), {name: values.to(device) for name, values in draws.items()}

    def assemble(self, index, draws):
        """The batch of the images `index`, int64 (B,), augmented by `draws`: a pure function of tensors."""
        images = augment(self.split.images.index_select(0, index), **draws)
        return normalise(images, self.mean, self.std), self.split.labels.index_select(0, index)


def load(name, data_dir, device, subset_percent=1.0, download=False):
    """Read the data set `name` from the folder `data_dir` onto `device`.

    subset_percent: in (0, 1], the share of the training images that is kept.
    Raises UserError for an unknown name, missing or damaged files, and a share without images.
    """
    if name not in DATASETS:
        raise UserError(f'unknown data set "{name}"{suggest(name, DATASETS)} (known: {", ".join(DATASETS)})')
    spec = DATASETS[name]
    read = getattr(datasets, name)
    images, labels, test_images, test_labels = read(Path(data_dir).expanduser(), download)
    sizes = len(labels), len(test_labels)

    kept = int(subset_percent * len(labels))
    if not 1 <= kept <= len(labels):
        raise UserError(f"subset_percent {subset_percent} leaves {kept} of {len(labels)} training images")
    if kept < len(labels):
        subset = np.random.RandomState(SUBSET_SEED).permutation(len(labels))[:kept]
        images, labels = images[subset], np.asarray(labels)[subset]

    size = f"{spec.image_size}x{spec.image_size}"
    summary = f"{name}: {kept} training, {sizes[1]} test images, {spec.num_classes} classes, {size}"
    if sizes != (spec.train_size, spec.test_size):
        summary += f" (a sample: the full set has {spec.train_size} and {spec.test_size})"
    train, test = _split(images, labels, device), _split(test_images, test_labels, device)
    return Dataset(name, spec, train, test, summary)


def _split(images, labels, device):
    images = torch.from_numpy(np.ascontiguousarray(images))
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    return Split(images.to(device), labels.to(device))
