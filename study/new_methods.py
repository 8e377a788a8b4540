"""Files in method/ as new rows and columns of a matrix of experiments/tables.json."""

import dataclasses
import shlex

import method
from method.attack import Attack
from training.params import Common
from utils.errors import UserError, suggest


def check(flag, names, present, kind):
    """Raises UserError unless method/`kind`/ has a method for each of `names`.

    flag: "rows" or "columns". present: names of the rows or columns that the matrix has.
    """
    files = method.files()
    for name in names:
        if name not in files[kind]:
            known = sorted({*present, *files[kind]})
            other = [flag for flag, there in (("rows", "defend"), ("columns", "attack")) if name in files[there]]
            hint = f"; use --{other[0]} {name}" if other else suggest(name, known)
            word = "defence" if kind == "defend" else "attack"
            raise UserError(f"--{flag} {name}: no such {word}; there are {', '.join(map(shlex.quote, known))}{hint}")
        if name not in method.names()[kind] and not method.is_release(name):
            base = "Method or Release" if kind == "defend" else "Attack"
            raise UserError(f"--{flag} {name}: method/{kind}/{name}.py defines no subclass of {base}")


def defence(name, template, keys):
    """The row of a matrix for the file `name` in method/defend/: the experiment of its student, and the keys to change.

    template: of the matrix; see forms.py. keys: {key: value} that the user changes.
    """
    if is_rule(name):
        return {"student": template["undefended"], "changes": defaults_of(name) | keys | {"release": name}}
    return {"student": template["defended"], "teacher_changes": defaults_of(name) | keys | {"method": name}}


def attack(name, entry, keys):
    """The keys to change in a student for the file `name` in method/attack/.

    entry: of the matrix. keys: {key: value} that the user changes. A key without a default has the value of the first
    attack, so that the attack is the same in all rows.
    """
    declared, first = declared_keys(name), next(iter(entry["attacks"].values()))
    usual = {key: value for key, value in first.items() if key in declared}
    return usual | defaults_of(name) | keys | {"method": name}


def is_rule(name):
    """Whether the file `name` defines a release rule and no method."""
    return method.is_release(name) and name not in method.names()["defend"]


def declared_keys(name):
    """{key: dataclass field} that the file `name` in method/ adds to those of every run and of every attack."""
    found = method.find_release(name) if is_rule(name) else method.find(name)
    shared = {field.name for part in (Common, Attack.Params) for field in dataclasses.fields(part)}
    return {field.name: field for field in dataclasses.fields(found.Params) if field.name not in shared}


def defaults_of(name):
    """{key: default} of the keys that the file `name` declares."""
    fields = declared_keys(name).items()
    return {key: field.default for key, field in fields if field.default is not dataclasses.MISSING}
