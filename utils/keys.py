"""Declarations of the keys of params.json, and checks of their values."""

import dataclasses
import json
import math
import types
import typing

from utils.errors import suggest


def key(about, default=dataclasses.MISSING, **metadata):
    """A dataclass field that declares a key of params.json. about: its description in docs/params.md.

    metadata: the limits `low` and `high` (inclusive), `above` and `below` (exclusive); `choices`; and `search`, the
    values that the search AutoSteal tries (see study/autosteal.py).
    """
    return dataclasses.field(default=default, kw_only=True, metadata={"about": about, **metadata})


LARGEST = 2**63 - 1  # larger whole numbers do not fit into a tensor
LONGEST = 80  # characters of a value in an error message


def wrong(name, value, field):
    """Check the type and the range of the value of the key `name`. Returns a list with one error message, or [].

    field: the dataclass field of the key; see `key`.
    """
    shown = shorten(json.dumps(value, default=repr))  # from Python, a value may be any object
    if not has_type(value, field.type):
        return [f'"{name}": must be {TYPE_NAMES[field.type]}, not {shown}']
    limits = field.metadata
    if "choices" in limits and value not in limits["choices"]:
        choices = limits["choices"]
        return [f'"{name}": must be one of {", ".join(choices)}, not {shown}{suggest(value, choices)}']
    if value is None or isinstance(value, (str, list)):
        return []
    if isinstance(value, int) and abs(value) > LARGEST:
        return [f'"{name}": must be between −2^63 and 2^63, not {shown}']
    if not math.isfinite(value):
        return [f'"{name}": must be finite, not {shown}']
    bad = (
        value < limits.get("low", -math.inf)
        or value > limits.get("high", math.inf)
        or value <= limits.get("above", -math.inf)
        or value >= limits.get("below", math.inf)
    )
    words = {"low": "at least", "high": "at most", "above": "above", "below": "below"}
    rule = " and ".join(f"{words[limit]} {limits[limit]}" for limit in words if limit in limits)
    return [f'"{name}": must be {rule}, not {shown}'] if bad else []


def shorten(text, longest=LONGEST):
    """`text`, cut after `longest` characters."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


TYPE_NAMES = {
    int: "a whole number",
    int | None: "a whole number or null",
    float: "a number",
    float | None: "a number or null",
    bool: "true or false (or 1 or 0)",
    str: "a string",
    str | None: "a string or null",
    list[int]: "a list of whole numbers, such as [75, 130]",
}


def has_type(value, kind):
    """Whether a JSON value has the declared type. Every int is valid as a float, and 0 and 1 are valid as a bool."""
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(has_type(item, typing.get_args(kind)[0]) for item in value)
    if isinstance(kind, types.UnionType):
        return any(has_type(value, option) for option in typing.get_args(kind))
    if kind is bool:
        return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
