"""Data sets: `DATASETS` describes them, and `load` reads one onto the device.

`load` returns a Dataset. Its methods `train_loader`, `validation_loader` and `test_loader` return Loaders; see
loader.py.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import datasets, imagefolder
from utils.errors import UserError, suggest
from utils.loader import Loader, Split, copied_split, mapped_split

SUBSET_SEED = 230
# Number of images assembled at once on a GPU, where launching the kernels of one batch takes longer than running them.
PREFETCH_IMAGES = 2048


@dataclass(frozen=True)
class DataSpec:
    """The properties of a data set. Images have the shape (3, image_size, image_size)."""

    num_classes: int
    image_size: int
    train_size: int
    test_size: int
    mean: tuple  # of the training images, whose values are from 0 to 1, for each channel
    std: tuple
    augmentation: tuple  # names for `sample_augmentation`


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
ASSUMED_CLASSES = 1000  # number of classes of imagefolder, until its folders are read


@dataclass(frozen=True)
class Dataset:
    """A data set on the device. Its loaders return batches (images, labels); see loader.py."""

    name: str
    spec: DataSpec
    train: Split
    validation: Split  # held back from the training images; may be empty
    test: Split
    summary: str  # one line for the log
    digest: str = ""  # of the images and labels, if they are the user's own

    def train_loader(self, batch_size, augmentation=True, seed=0, rank=0, world_size=1, prefetch=False, role=0):
        """A Loader with shuffled batches of the training images.

        rank, world_size: index of this process, and number of processes. prefetch: whether to assemble several batches
        at once on a GPU. role: another number gives another order and other augmentations. Raises UserError if a
        process gets fewer than two images of the last batch, because batch norm needs two.
        """
        last = len(self.train) % batch_size or batch_size
        if last // world_size < 2:
            processes = f" for {world_size} processes" if world_size > 1 else ""
            raise UserError(
                f"batch_size {batch_size}: with {len(self.train)} training images, the last batch has size {last}"
                f"{processes}, but batch norm needs at least 2 images per process; choose another batch_size or "
                "subset_percent"
            )
        names = self.spec.augmentation if augmentation else ()
        batches = max(1, PREFETCH_IMAGES // batch_size) if prefetch and self.train.labels.is_cuda else 1
        return Loader(self.train, self.spec, batch_size, names, True, seed, rank, world_size, batches, role)

    def test_loader(self, batch_size=1000):
        """A Loader with the test images in order, without augmentation."""
        return Loader(self.test, self.spec, batch_size)

    def validation_loader(self):
        """A Loader with the validation images in order, without augmentation."""
        return Loader(self.validation, self.spec, 1000)


def options_in(params):
    """{name: value} of the arguments `options` of `load`. params: a dictionary, the parameters of a run."""
    return {name: params[name] for name in ("image_size", "augmentations") if params["dataset"] == OWN}


def default_folder():
    """The folder of the data sets if none is given: $DATA_DIR, or data."""
    return os.environ.get("DATA_DIR", "data")


def spec_of(params):
    """The DataSpec of a run before its data set is read. For imagefolder, most values are assumed."""
    if params.dataset in DATASETS:
        return DATASETS[params.dataset]
    augmentation = tuple(params.augmentations.split("+"))
    return DataSpec(ASSUMED_CLASSES, params.image_size, 0, 0, (0.5,) * 3, (0.5,) * 3, augmentation)


def load(name, data_dir, device, subset_percent=1.0, download=False, validation=0.0, **options):
    """Read the data set `name` from the folder `data_dir` onto `device`. Returns a Dataset.

    subset_percent: share of the training images to keep, in (0, 1]. validation: share of these to hold back, in [0, 1).
    options: see `options_in`. Raises UserError if the name is unknown, files are missing or damaged, or no image is
    left.
    """
    if name not in NAMES:
        raise UserError(f'unknown data set "{name}"{suggest(name, NAMES)} (known: {", ".join(NAMES)})')
    folder, digest = Path(data_dir).expanduser(), ""
    if name == OWN:
        source = imagefolder.read(folder, options["image_size"])
        (images, labels), (test_images, test_labels), digest = source.train, source.test, source.digest
        num_classes, image_size = len(source.classes), options["image_size"]
        augmentation = tuple(options["augmentations"].split("+"))
        spec = DataSpec(num_classes, image_size, len(labels), len(test_labels), source.mean, source.std, augmentation)
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
    rows, train_size = np.arange(len(labels)), kept - held_back
    if held_back or kept < len(labels):
        rows = np.random.RandomState(SUBSET_SEED).permutation(len(labels))[:kept]
    make_split = mapped_split if name == OWN else copied_split
    splits = [make_split(images, labels, device, part) for part in (rows[:train_size], rows[train_size:])]
    splits.append(make_split(test_images, test_labels, device, np.arange(len(test_labels))))

    summary = summarise(name, spec, *map(len, splits))
    if sizes != (spec.train_size, spec.test_size):
        summary += f" (a sample: the full set has {spec.train_size} and {spec.test_size})"
    if name == OWN:
        mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (spec.mean, spec.std))
        summary += f", mean {mean}, deviation {std}, digest {digest}"
    return Dataset(name, spec, *splits, summary, digest)


def summarise(name, spec, train, validation, test):
    """The line of training.log that describes a data set. train, validation, test: numbers of images."""
    held_back = f"{validation} validation, " if validation else ""
    size = f"{spec.image_size}x{spec.image_size}"
    return f"{name}: {train} training, {held_back}{test} test images, {spec.num_classes} classes, {size}"
