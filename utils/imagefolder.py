"""The data set "imagefolder": the user's own images, in train/<class>/ and test/<class>/ of the data folder.

The test folder may also be called val. Each image is cropped at its centre to a square and resized to `image_size`. The
decoded images, their mean and their standard deviation are cached in the data folder.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from PIL import Image, ImageOps

from utils import image_cache
from utils.errors import UserError
from utils.keys import key
from utils.paths import write_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
STEPS = ("crop", "rotate", "flip")
AUGMENTATIONS = tuple("+".join(chosen) for count in (1, 2, 3) for chosen in combinations(STEPS, count))
LAYOUT = "the data folder needs train/<class>/ and test/<class>/ (or val/<class>/) with images"
PIECE = 256  # number of images that `summary` reads at once


@dataclass
class Params:
    """The keys of params.json that this data set adds."""

    image_size: int = key("imagefolder only: width and height to which images are resized", low=8)
    augmentations: str = key(
        "imagefolder only: random augmentations of the training images", default="crop+flip", choices=AUGMENTATIONS
    )


@dataclass(frozen=True)
class ImageFolder:
    """The decoded images of a data folder."""

    train: tuple  # (images uint8 (N, S, S, 3), labels (N,))
    test: tuple
    classes: tuple  # names
    mean: tuple  # of the training images, whose values are from 0 to 1, for each channel
    std: tuple
    digest: str  # of all pixels and labels


def read(data_dir, image_size):
    """The ImageFolder in `data_dir`. Raises UserError with the name of the first class or file that cannot be used."""
    test = "test" if (data_dir / "test").is_dir() else "val"
    files_of = {part: files_of_classes(data_dir / part) for part in ("train", test)}
    classes = same_classes(files_of, data_dir)
    parts, summaries = [], []
    for part, files in files_of.items():
        paths = [path for name in classes for path in files[name]]
        labels = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
        version = f"{image_size} {classes}"
        images = image_cache.decoded(paths, data_dir, part, image_size, partial(decode, size=image_size), version)
        file = image_cache.cache_file(paths, data_dir, part, version).with_suffix(".json")
        parts.append((images, labels))
        summaries.append(summary(images, labels, file))
    digest = hashlib.sha256("".join(each["sha256"] for each in summaries).encode()).hexdigest()[:16]
    return ImageFolder(*parts, classes, tuple(summaries[0]["mean"]), tuple(summaries[0]["std"]), digest)


def files_of_classes(folder):
    """{class: sorted paths of its images}. Raises UserError for a folder without classes, or a class without images."""
    if not folder.is_dir():
        raise UserError(f"imagefolder: {folder} is missing; name the data folder with --data_dir: {LAYOUT}")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = {path.name: sorted(filter(is_image, path.rglob("*"))) for path in folders}
    if len(classes) < 2:
        raise UserError(f"imagefolder: {folder} has {len(classes)} class folders, expected at least 2; {LAYOUT}")
    for name, files in classes.items():
        if not files:
            raise UserError(f"imagefolder: {folder / name} has no images ({', '.join(SUFFIXES)})")
    return classes


def is_image(path):
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def same_classes(files_of, data_dir):
    """The names of the classes, in order. Raises UserError if the classes of the two parts differ.

    files_of: {part: {class: paths}}.
    """
    (first, one), (second, other) = files_of.items()
    for part, extra in ((first, one.keys() - other.keys()), (second, other.keys() - one.keys())):
        if extra:
            problem = f"only {part}/ has the class {', '.join(sorted(extra)[:5])}"
            raise UserError(f"imagefolder: {data_dir}: {first}/ and {second}/ have different classes: {problem}")
    return tuple(one)


def decode(path, size):
    """The image in a file as uint8 (size, size, 3)."""
    try:
        with Image.open(path) as image:
            image = ImageOps.fit(ImageOps.exif_transpose(rgb(image)), (size, size), Image.Resampling.BILINEAR)
    except UserError as error:
        raise UserError(f"imagefolder: {path}: {error}") from None
    except Exception as error:  # damaged files fail in many ways
        raise UserError(f"imagefolder: {path} is damaged: {error}") from None
    return np.asarray(image)


def rgb(image):
    """The image in RGB with 8 bits per channel. 16-bit grey values are divided by 257. Transparency is ignored."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        pixels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError("has 32-bit pixels; convert it to 8 or 16 bits")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def summary(images, labels, file):
    """{"mean", "std": per channel, from 0 to 1, "sha256": of pixels and labels}. The JSON file `file` caches it."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        pass
    counts, digest = np.zeros((3, 256), np.int64), hashlib.sha256(labels.astype(np.int64).tobytes())
    for first in range(0, len(images), PIECE):
        piece = np.ascontiguousarray(images[first : first + PIECE])
        digest.update(piece.tobytes())
        counts += [np.bincount(piece[..., channel].ravel(), minlength=256) for channel in range(3)]
    values, weights = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = weights @ values
    std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1)).clip(1 / 255)
    content = {"mean": mean.round(4).tolist(), "std": std.round(4).tolist(), "sha256": digest.hexdigest()}
    try:
        write_file(file, lambda stream: stream.write(json.dumps(content).encode()))
    except UserError:  # the folder is read-only or full
        pass
    return content
