"""Paths as users write them, and files that are written whole or not at all."""

import os
import uuid
from pathlib import Path

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def from_root(path):
    """`path`, for example of an experiment or in a `*_resume` key: relative paths start at the project root."""
    return ROOT / path


def display_path(path):
    """`path` relative to the project root if it lies below it, else absolute; a string."""
    path = Path(path).absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def version(path):
    """A value that changes when the file `path` is replaced or written to; None if there is no such file."""
    stat = path.stat() if path.is_file() else None
    return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def write_file(path, write, shared=False):
    """Call `write` with a binary file that replaces `path` once it is complete and on the disk.

    shared: whether other processes may write the same file at the same time. A kill at any moment leaves the old `path`
    or the new one. Raises UserError if the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp" if shared else f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{display_path(path)}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
