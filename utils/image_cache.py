"""A cache of decoded images. The file is memory-mapped, so a data set may be larger than the memory."""

import contextlib
import hashlib
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

PIECE = 1024  # number of images that are decoded or digested at once


def decoded(paths, folder, part, size, decode, version=""):
    """The images in the files `paths` as one array uint8 (N, size, size, 3).

    The array is memory-mapped from a file in `folder`, which is written once. The name of that file contains a digest
    of the names, sizes and modification times of `paths`. If `folder` cannot be written, the array is held in memory.
    The file ends with a digest of the pixels. If the digest differs, the images are decoded again.

    part: the first word of the name of the file, such as "train". decode: a function of a path that returns an array
    uint8 (size, size, 3). version: text that differs between the versions of `decode`; it changes the name of the file.
    """
    cache = cache_file(paths, folder, part, version)
    shape = (len(paths), size, size, 3)
    with contextlib.suppress(Exception):  # a damaged file fails in many ways
        images = np.load(cache, mmap_mode="c")
        if (images.dtype, images.shape) == (np.uint8, shape) and is_intact(images, cache):
            return images
    temporary = cache.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        write(temporary, shape, decoded_images(paths, part, decode))
        temporary.replace(cache)
        return np.load(cache, mmap_mode="c")
    except OSError:  # the folder is read-only or full
        images = np.empty(shape, np.uint8)
        for number, image in enumerate(decoded_images(paths, part, decode)):
            images[number] = image
        return images
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_intact(images, cache):
    """Whether the file `cache` ends with the digest of `images`."""
    digest = hashlib.sha256()
    for first in range(0, len(images), PIECE):
        digest.update(np.ascontiguousarray(images[first : first + PIECE]))
    with cache.open("rb") as file:
        file.seek(-digest.digest_size, os.SEEK_END)
        return file.read() == digest.digest()


def cache_file(paths, folder, part, version):
    """The path of the cache of the images `paths`, which are inside `folder`. Other arguments: see `decoded`."""
    stats = [(str(path.relative_to(folder)), path.stat()) for path in paths]
    description = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]) + version
    return folder / f"{part}.{hashlib.sha256(description.encode()).hexdigest()[:16]}.npy"


def decoded_images(paths, part, decode):
    """Yield the decoded images in order. Threads decode at most PIECE images ahead."""
    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), desc=f"Decoding {part}", disable=None) as bar:
        for first in range(0, len(paths), PIECE):
            for image in pool.map(decode, paths[first : first + PIECE]):
                yield image
                bar.update()


def write(path, shape, images):
    """Write an .npy file of this shape, image by image, and append the digest of the pixels."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            pixels = np.ascontiguousarray(image).tobytes()
            file.write(pixels)
            digest.update(pixels)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
