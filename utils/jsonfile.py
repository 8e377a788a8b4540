"""JSON files that users write."""

import copy
import functools
import json
from pathlib import Path

from utils.errors import UserError
from utils.paths import display_path, version


def read_json(path):
    """The dictionary in the JSON file `path`. Raises UserError with line and column if it is malformed.

    A file that has not changed is parsed once.
    """
    path = Path(path)
    return copy.deepcopy(parse(path, version(path)))


@functools.cache
def parse(path, version):
    """version: anything that changes when the file does."""
    where = display_path(path)

    def unique(pairs):
        repeated = {name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1}
        if repeated:
            raise UserError(f"{where}: {', '.join(sorted(repeated))}: the key occurs more than once")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise UserError(f"{where}: there is no such file; an experiment is a folder with a params.json") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f'{where}: must be one object, {{"key": value, ...}}')
    return content
