"""Changed keys (`--set KEY=VALUE`): functions that parse, apply and compare them.

In this project, a *key* is a name in params.json, and `raw` is the content of a params.json, without defaults.
"""

import dataclasses
import json
import urllib.parse

from training.params import Common, defaults, schema, with_method, with_new_names
from utils import imagefolder
from utils.errors import UserError, suggest
from utils.keys import LARGEST, shorten

LONGEST_VALUE = 400  # characters of a value in `differences`; long, because paths often differ in their last parts
IGNORED = ("cuda", "num_workers", "stored_answers_gib")  # keys that do not change results


def parse_change(text):
    """("alpha", 0.5) from "alpha=0.5". A value that is not JSON is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f'--set {shorten(text)}: must be key=value, for example "--set alpha=0.5"')
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def apply(raw, changes):
    """`raw` with `changes`. If they replace the method, release or network, keys of the old one are dropped."""
    raw, changes = with_new_names(raw), with_new_names(changes)
    new = raw | changes
    try:
        dropped = schema(with_method(raw)).keys() - schema(with_method(new)).keys() - changes.keys()
    except UserError:  # `params.check` reports it
        dropped = ()
    return {name: value for name, value in new.items() if name not in dropped}


def effective(raw, changes):
    """The items of `changes` that differ from the value in `raw`, or from the default if `raw` lacks the key."""
    raw, changes = with_new_names(raw), with_new_names(changes)
    try:
        raw, default = with_method(raw), defaults(apply(raw, changes))
    except UserError:  # `params.check` reports it
        default = {}
    return {name: value for name, value in changes.items() if raw.get(name, default.get(name)) != value}


def check_common(changes, others=()):
    """Return `changes`, with renamed keys under their new names.

    Raises UserError if one of the keys cannot be changed in all runs of a table.
    others: further keys that could be meant, for a suggestion.
    """
    fixed = {"model_name", "method", "resume", "seed"}
    declared = [*dataclasses.fields(Common), *dataclasses.fields(imagefolder.Params)]
    keys = [field.name for field in declared if field.name not in fixed]
    changes = with_new_names(changes)
    for name in changes:
        if name not in keys:
            hint = "; use --seeds" if name == "seed" else suggest(name, [*keys, *others])
            allowed = ", ".join(keys)
            raise UserError(f"--set {shorten(name)}: cannot be changed in all runs; allowed are {allowed}{hint}")
    return changes


def differences(old, new):
    """Lines that name the keys in which two dictionaries of parameters differ. `num_epochs` may be larger in `new`."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        grown = name == "num_epochs" and isinstance(before, int) and isinstance(after, int) and after > before
        if name not in IGNORED and before != after and not grown:
            before, after = (shorten(json.dumps(value), LONGEST_VALUE) for value in (before, after))
            lines.append(f'"{name}": {before} in that run, {after} now')
    return lines


def differences_to_run(ran, wanted):
    """`differences` between the parameters `ran` in a run's checkpoint and those `wanted` now.

    If a run is older than a key, the run had the default value of this key. The precision "auto" is not compared: `ran`
    has the value that it was resolved to.
    """
    ran = defaults(wanted) | with_new_names(ran)
    return differences(ran, wanted | {"precision": ran["precision"]} if wanted["precision"] == "auto" else wanted)


def as_pairs(values):
    """{key: value} as a sorted tuple of pairs of a key and a canonical value, which can be hashed and compared."""
    return tuple(sorted((name, canonical(value)) for name, value in values.items()))


def as_dict(pairs):
    """The dictionary from which `as_pairs` made `pairs`."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


def canonical(value):
    """The canonical form of a value: 1 for 1.0 and true, a tuple for a list. Equal values have the same form."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST):
        return int(value)
    return tuple(map(canonical, value)) if isinstance(value, (list, tuple)) else value


def spell(value):
    """A canonical value as text for the name of a folder.

    Different values of one key have different texts. The text has no characters that are special in a shell.
    """
    if isinstance(value, tuple):
        return "+".join(map(spell, value)) or "none"
    if isinstance(value, str):
        quoted = urllib.parse.quote(value, safe="")
        # The string "null" becomes "%6Eull", because "null" is the text of None.
        return f"%{ord(quoted[0]):02X}{quoted[1:]}" if quoted in ("null", "true", "false") else quoted
    return json.dumps(value)
