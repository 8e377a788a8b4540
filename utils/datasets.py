"""Functions that read the published data sets into NumPy arrays, one function per data set.

Each function returns (train images, train labels, test images, test labels). Images are uint8 (N, H, W, 3), labels are
integers (N,). The function raises UserError with the name of the first file that is missing or damaged.

torchvision is imported inside the functions, because the import is slow, and scripts that read no images, such as
results.py, do not need it.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from utils import image_cache
from utils.errors import UserError

TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
DIGITS_MD5 = "35fa292850aefdac88ea117403394609"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
ADVICE = "add --download to fetch the data set, or name its folder with --data_dir"


def cifar10(data_dir, download):
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, data_dir, download)


def cifar100(data_dir, download):
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, data_dir, download)


def _cifar(name, reader, data_dir, download):
    """Read the files in data_dir or data_dir/data-<name> with torchvision, which checks the md5 of each file."""
    from torchvision.datasets.utils import check_integrity

    root = data_dir if (data_dir / reader.base_folder).is_dir() else data_dir / f"data-{name}"
    folder = root / reader.base_folder
    try:
        train, test = (reader(root, train=part, download=download) for part in (True, False))
    except (OSError, RuntimeError) as error:
        if download:
            raise UserError(f"{name}: download to {root} failed: {error}") from error
        files = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
        bad = next((folder / file for file, md5 in files if not check_integrity(folder / file, md5)), folder)
        fault = "is not the published file (its md5 differs)" if bad.is_file() else "is missing"
        raise UserError(f"{name}: {bad} {fault}; {ADVICE}") from error
    return train.data, train.targets, test.data, test.targets


def digits(data_dir, download):
    """Read digits.npz, which is part of this package, and enlarge the images to 32x32. digits.txt names the source.

    The training images are the first 898 of RandomState(0).permutation(1797), in that order. The arguments are ignored.
    """
    from torchvision.datasets.utils import check_integrity

    path = Path(__file__).with_name("digits.npz")
    if not check_integrity(path, DIGITS_MD5):
        raise UserError(f"digits: {path} is not the file of this project (its md5 differs); restore it with git")
    with np.load(path) as file:
        images, labels = file["images"], file["labels"]
    # All interpolation weights are multiples of 1/64. Float32 represents them exactly, so every machine computes the
    # same pixels.
    grey = torch.from_numpy(images)[:, None].float() * (255 / 16)
    large = F.interpolate(grey, size=32, mode="bilinear", align_corners=False).round().byte()
    images = large.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    order = np.random.RandomState(0).permutation(len(labels))
    train, test = order[:898], order[898:]
    return images[train], labels[train], images[test], labels[test]


def tiny_imagenet(data_dir, download):
    """Read data_dir/tiny-imagenet-200. The folder val/ has the layout of the public archive, or one folder per class.

    Classes are numbered in the order of the sorted folder names in train/, as torchvision's ImageFolder does.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    folder = data_dir / "tiny-imagenet-200"
    if download and [_count(folder / part) for part in ("train", "val")] != [100_000, 10_000]:
        try:
            download_and_extract_archive(TINY_URL, data_dir, md5=TINY_MD5)
        except (OSError, RuntimeError) as error:
            raise UserError(f"tiny_imagenet: download to {data_dir} failed: {error}") from error
    if not (folder / "train").is_dir():
        raise UserError(f"tiny_imagenet: {folder / 'train'} is missing; {ADVICE}")
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    if len(classes) != 200:
        raise UserError(f"tiny_imagenet: {folder / 'train'} has {len(classes)} class folders, expected 200")

    train = _class_folders(folder / "train", classes)
    has_class_folders = (folder / "val" / classes[0]).is_dir()
    test = _class_folders(folder / "val", classes) if has_class_folders else _annotated(folder / "val", classes)
    for part, files in (("train", train), ("val", test)):
        if not files:
            raise UserError(f"tiny_imagenet: no images in {folder / part}; {ADVICE}")
    train_images = _decoded([path for path, _ in train], folder, "train")
    test_images = _decoded([path for path, _ in test], folder, "val")
    return train_images, [label for _, label in train], test_images, [label for _, label in test]


def _count(folder):
    return sum(1 for _ in folder.rglob("*.JPEG"))


def _class_folders(folder, classes):
    """A list of (path, label) of all images in the folders `folder`/CLASS, class by class."""
    return [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).rglob("*.JPEG"))]


def _annotated(val, classes):
    """A list of (path, label): the images in val/images. The file val_annotations.txt lists them and their classes."""
    table = val / "val_annotations.txt"
    if not table.is_file():
        raise UserError(f"tiny_imagenet: {table} is missing, and {val} has no class folders")
    labels = {name: label for label, name in enumerate(classes)}
    rows = [line.split("\t")[:2] for line in table.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    for row in rows:
        if len(row) < 2 or row[1] not in labels:
            raise UserError(f"tiny_imagenet: {table}: {row[0]}: its class is missing, or is not a folder of train/")
        if row[0] != Path(row[0]).name:
            raise UserError(f"tiny_imagenet: {table}: {row[0]} is not the name of a file in {val / 'images'}")
        if not (val / "images" / row[0]).is_file():
            raise UserError(f"tiny_imagenet: {val / 'images' / row[0]} is missing; {table.name} lists it")
    return [(val / "images" / name, labels[wnid]) for name, wnid in rows]


def _decoded(paths, folder, part):
    """The images as an array (N, 64, 64, 3) in memory. A file in `folder` caches it."""
    return np.array(image_cache.decoded(paths, folder, part, 64, _decode))


def _decode(path):
    """Read a JPEG file as an RGB image (64, 64, 3). Greyscale files are converted."""
    try:
        with Image.open(path) as image:
            if image.size == (64, 64):  # images of other sizes are not decoded, because they may be very large
                return np.asarray(image.convert("RGB"))
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"{path} is damaged: {error}. Delete tiny-imagenet-200 and use --download to fetch it again"
        raise UserError(f"tiny_imagenet: {problem}") from None
    raise UserError(f"tiny_imagenet: {path} is {width}x{height}, expected 64x64")
