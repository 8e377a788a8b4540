"""Data sets, held on the device as uint8, and loaders that assemble batches there.

`load` returns a Dataset, whose `train_loader` and `test_loader` return Loaders. A batch is (images, labels): images
float32 (B, 3, H, W), normalised, in channels_last memory format; labels int64 (B,).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils import datasets, imagefolder
from utils.augment import augment, normalise, sample_augmentation
from utils.errors import UserError, suggest

SUBSET_SEED = 230
PREFETCH_IMAGES = 2048  # assembled at once on a GPU, where launching a batch's kernels takes longer than running them


@dataclass(frozen=True)
class DataSpec:
    """What is known about a data set without reading it. Images are (3, image_size, image_size)."""

    num_classes: int
    image_size: int
    train_size: int
    test_size: int
    mean: tuple
    std: tuple
    augmentation: tuple  # names that `sample_augmentation` takes


CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
TINY_MEAN, TINY_STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)

DATASETS = {
    "cifar10": DataSpec(10, 32, 50_000, 10_000, CIFAR_MEAN, CIFAR_STD, ("crop", "flip")),
    "cifar100": DataSpec(100, 32, 50_000, 10_000, CIFAR_MEAN, CIFAR_STD, ("crop", "flip")),
    "tiny_imagenet": DataSpec(200, 64, 100_000, 10_000, TINY_MEAN, TINY_STD, ("rotate", "flip")),
    # No flip, because mirrored digits are not valid digits. Mean and deviation are those of the training half.
    "digits": DataSpec(10, 32, 898, 899, (0.3051,) * 3, (0.3227,) * 3, ("crop",)),
}
OWN = "imagefolder"  # the user's own images
NAMES = (*DATASETS, OWN)
MOST_CLASSES = 1000  # of imagefolder, until its folders are read


@dataclass(frozen=True)
class Split:
    """The images of a part of a data set: all of `images`, or those that `rows` numbers.

    With `rows`, `images` may be memory-mapped, and on another device than the batches.
    """

    images: torch.Tensor  # uint8 (N, H, W, 3)
    labels: torch.Tensor  # int64 (n,), on the device of the batches
    rows: torch.Tensor | None = None  # int64 (n,), on the device of `images`; None: n = N, in the order of `images`

    def __len__(self):
        return len(self.labels)

    def take(self, index):
        """The images `index`, int64 (B,), on the device of the labels."""
        if self.rows is None:
            return self.images.index_select(0, index)
        return self.images.index_select(0, self.rows[index.to(self.rows.device)]).to(self.labels.device)


@dataclass(frozen=True)
class Dataset:
    name: str
    spec: DataSpec
    train: Split
    validation: Split  # held back from the training images; may be empty
    test: Split
    summary: str  # one line for the log
    digest: str = ""  # of the images and labels, if they are the user's own

    def train_loader(self, batch_size, augmentation=True, seed=0, rank=0, world_size=1, prefetch=False, role=0):
        """Shuffled batches. prefetch: on a GPU, assemble several batches at once.

        role: another number gives another order and augmentation.

        Raises UserError if the last batch leaves a process fewer than two images, which batch norm needs.
        """
        last = len(self.train) % batch_size or batch_size
        if last // world_size < 2:
            share = f" over {world_size} processes" if world_size > 1 else ""
            raise UserError(
                f"batch_size {batch_size}: the last batch of {len(self.train)} images has {last}{share}, but "
                "batch norm needs at least 2 per process; choose another batch_size or subset_percent"
            )
        names = self.spec.augmentation if augmentation else ()
        batches = max(1, PREFETCH_IMAGES // batch_size) if prefetch and self.train.labels.is_cuda else 1
        return Loader(self.train, self.spec, batch_size, names, True, seed, rank, world_size, batches, role)

    def test_loader(self, batch_size=1000):
        return Loader(self.test, self.spec, batch_size)

    def validation_loader(self, batch_size=1000):
        return Loader(self.validation, self.spec, batch_size)


class Loader:
    """Batches of a split: every image once per epoch. The last batch may be smaller.

    Order and augmentation depend on (seed, epoch, role) only and are the same on every device. With several processes,
    process `rank` receives every `world_size`-th image of each batch. `prefetch` batches are assembled at once, which
    does not change their pixels.
    """

    def __init__(
        self, split, spec, batch_size, augmentation=(), shuffle=False, seed=0, rank=0, world_size=1, prefetch=1, role=0
    ):
        self.split, self.batch_size = split, batch_size
        self.augmentation, self.shuffle = augmentation, shuffle
        self.seed, self.role, self.epoch = seed, role, 0
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.mean = torch.tensor(spec.mean, device=split.labels.device)
        self.std = torch.tensor(spec.std, device=split.labels.device)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return -(-len(self.split) // self.batch_size)

    def __iter__(self):
        order, augmentation = self.sample_epoch()
        positions = torch.arange(len(self.split), device=order.device)
        shares = [batch[self.rank :: self.world_size] for batch in positions.split(self.batch_size)]
        for first in range(0, len(shares), self.prefetch):
            group = shares[first : first + self.prefetch]
            chosen = torch.cat(group)
            images, labels = self.assemble(
                order[chosen], {name: values[chosen] for name, values in augmentation.items()}
            )
            sizes = [len(share) for share in group]
            yield from zip(images.split(sizes), labels.split(sizes), strict=True)

    def sample_epoch(self):
        """The order of the epoch, int64 (N,), and the random numbers of its augmentation, in that order.

        They are sampled on the CPU, so that they do not depend on the device.
        """
        count, device = len(self.split), self.split.labels.device
        # SeedSequence mixes the numbers: epoch 1 of seed 0 must differ from epoch 0 of seed 1.
        numbers = (self.seed, self.epoch, self.role) if self.role else (self.seed, self.epoch)
        state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        numbers = sample_augmentation(self.augmentation, count, generator)
        return order.to(device), {name: values.to(device) for name, values in numbers.items()}

    def assemble(self, index, augmentation):
        """(images, labels) of the images `index`, int64 (B,), augmented with the arguments of `augment`."""
        images = augment(self.split.take(index), **augmentation)
        return normalise(images, self.mean, self.std), self.split.labels.index_select(0, index)


def options_in(params):
    """The arguments `options` of `load` that are keys of `params`."""
    if params.dataset != OWN:
        return {}
    return {"image_size": params.image_size, "augmentations": params.augmentations}


def spec_of(params):
    """What is known about a run's data set before it is read. For imagefolder, the number of classes is a guess."""
    if params.dataset in DATASETS:
        return DATASETS[params.dataset]
    names = tuple(params.augmentations.split("+"))
    return DataSpec(MOST_CLASSES, params.image_size, 0, 0, (0.5,) * 3, (0.5,) * 3, names)


def load(name, data_dir, device, subset_percent=1.0, download=False, validation=0.0, **options):
    """Read the data set `name` from the folder `data_dir` onto `device`.

    subset_percent: share of the training images to keep, in (0, 1]. validation: share of these to hold back, in [0, 1).
    options: see `options_in`. Raises UserError if the name is unknown, files are missing or damaged, or no image is
    left.
    """
    if name not in NAMES:
        raise UserError(f'unknown data set "{name}"{suggest(name, NAMES)} (known: {", ".join(NAMES)})')
    folder, digest = Path(data_dir).expanduser(), ""
    if name == OWN:
        found = imagefolder.read(folder, options["image_size"])
        (images, labels), (test_images, test_labels), digest = found.train, found.test, found.digest
        names = tuple(options["augmentations"].split("+"))
        sizes = options["image_size"], len(labels), len(test_labels)
        spec = DataSpec(len(found.classes), *sizes, found.mean, found.std, names)
    else:
        spec = DATASETS[name]
        images, labels, test_images, test_labels = getattr(datasets, name)(folder, download)
    sizes = len(labels), len(test_labels)

    kept = int(subset_percent * len(labels))
    if not 1 <= kept <= len(labels):
        raise UserError(f"subset_percent {subset_percent} leaves {kept} of {len(labels)} training images")
    held_back = round(validation * kept)
    if validation and not 1 <= held_back < kept:
        raise UserError(f"validation {validation} holds back {held_back} of {kept} training images")
    rows, split = np.arange(len(labels)), kept - held_back
    if held_back or kept < len(labels):
        rows = np.random.RandomState(SUBSET_SEED).permutation(len(labels))[:kept]
    in_rows = _mapped if name == OWN else _split
    train, validation = (in_rows(images, labels, device, part) for part in (rows[:split], rows[split:]))
    test = in_rows(test_images, test_labels, device, np.arange(len(test_labels)))

    size = f"{spec.image_size}x{spec.image_size}"
    counts = f"{split} training, " + (f"{held_back} validation, " if held_back else "") + f"{sizes[1]} test images"
    summary = f"{name}: {counts}, {spec.num_classes} classes, {size}"
    if sizes != (spec.train_size, spec.test_size):
        summary += f" (a sample: the full set has {spec.train_size} and {spec.test_size})"
    if name == OWN:
        mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (spec.mean, spec.std))
        summary += f", mean {mean}, deviation {std}, digest {digest}"
    return Dataset(name, spec, train, validation, test, summary, digest)


def _split(images, labels, device, rows):
    """A Split with the images `rows` on `device`."""
    if not np.array_equal(rows, np.arange(len(images))):
        images, labels = images[rows], np.asarray(labels)[rows]
    images = torch.from_numpy(np.ascontiguousarray(images))
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    return Split(images.to(device), labels.to(device))


def _mapped(images, labels, device, rows):
    """A Split with the rows `rows` of `images`, which may be memory-mapped. They go to a GPU only if they fit."""
    images, rows = torch.from_numpy(images), torch.from_numpy(rows)
    if torch.device(device).type == "cuda" and fits(images.nbytes, device):
        images, rows = images.to(device), rows.to(device)
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return Split(images, labels[rows.cpu()].to(device), rows)


def fits(size, device):
    """Whether `size` bytes take at most half of the free memory of a GPU."""
    return size <= torch.cuda.mem_get_info(device)[0] / 2
