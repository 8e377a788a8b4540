"""Paths relative to the project root, atomic writes of files, and JSON files."""

import copy
import functools
import json
import os
import uuid
from pathlib import Path

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def from_root(path):
    """`path`, for example of an experiment, as an absolute path. A relative path starts at the project root."""
    return ROOT / path


def display_path(path):
    """`path` as a string: relative to the project root for paths inside the project, otherwise absolute."""
    path = Path(path).absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def canonical_path(path):
    """Like `display_path`, with symbolic links and ".." resolved. All paths of a file have the same canonical path."""
    try:
        return display_path(os.path.realpath(from_root(path)))
    except ValueError:
        raise UserError(f"{str(path)!r}: a path cannot contain a null character") from None


def version(path):
    """A value that changes if the file `path` is replaced or modified; None if there is no such file."""
    stat = path.stat() if path.is_file() else None
    return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def write_file(path, write, shared=False):
    """Write a file atomically: call `write` with a temporary binary file, which then replaces `path`.

    If the process is killed, `path` is the old file or the complete new file. shared: whether other processes may write
    the same file at the same time. Raises UserError if the file cannot be written.
    """
    temporary = path.parent / (f"{path.name}.{uuid.uuid4().hex}.tmp" if shared else f"{path.name}.tmp")
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


def make_folder(folder):
    """Make `folder` and its parents, unless they exist. Raises UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{display_path(folder)}: cannot be written: {error.strerror}") from None


def read_json(path):
    """The dictionary in the JSON file `path`. Raises UserError with line and column if it is malformed.

    A file that has not changed is parsed once.
    """
    path = Path(path)
    return copy.deepcopy(parse(path, version(path)))


@functools.cache
def parse(path, version):
    """The dictionary in a JSON file. version: a value that changes if the file changes; only a key of the cache."""
    where = display_path(path)

    def unique(pairs):
        repeated = {name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1}
        if repeated:
            raise UserError(f"{where}: {', '.join(sorted(repeated))}: the key occurs more than once")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        hint = "; an experiment is a folder with a params.json" if path.name == "params.json" else ""
        raise UserError(f"{where}: there is no such file{hint}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f'{where}: must be one object, {{"key": value, ...}}')
    return content


def write_json(path, content):
    """Write a dictionary as an indented JSON file. Several processes may write the same file at the same time."""
    write_file(path, lambda file: file.write(f"{json.dumps(content, indent=4)}\n".encode()), shared=True)
