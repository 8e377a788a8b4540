"""The form (schema) of experiments/tables.json.

The file has an object {name of a target: entry}. Each entry that is an object has a `title` and a `source`. An entry is
one of
- a table: `columns`, and `rows` with `cells` [experiment, published accuracy in percent or null]. A row may have
  `experiments` instead of cells. The `changes` of a row are made in its experiments, and its `teacher_changes` in their
  teachers. The `teacher` of a row, an experiment or a checkpoint, replaces the teacher of all of its students.
  `conclusion` has the numbers of three rows, which a text below the table compares. With a `teacher_seed`, all students
  learn from teachers with this seed, whatever their own seeds are;
- a sweep: a `key`, its `values`, and `rows`, each with an experiment. `change` says where the key is changed: "own", in
  the experiment, or "teacher", in its teacher. A row may have other `changes` and `teacher_changes`. With `part`
  "validation", the accuracy on validation images is shown;
- a matrix: `defences`, each with the student of a defended teacher, and `attacks`, each with keys to change in that
  student. `alone` is the student without a teacher; `yardstick` and `control` are keys to change in it. `template`
  names two students, from which the rows of new defences are made. A new method replaces the method in the teacher of
  "defended". A new release rule replaces the rule in "undefended", the student of a normal teacher;
- a benchmark: like a matrix without `yardstick` and `control`, but with `presets`, `draws`, `seeds` and `tuning_seed`;
  see docs/benchmark.md. A defence is an object with the `student`, and keys to change as in a row of a table. It may
  have `strengths`: a key and its values, from strong to weak. `more_attacks` are attacks that the search does not use;
  `reproduce.py --columns` can select them;
- the name of another entry.
"""

import json

from utils.errors import UserError
from utils.keys import shorten

# A form describes a value. It is a type, a tuple of forms of which one must fit, [form of the items], {name: form} or
# {...: form of all values}. Names that a form does not have are ignored. A name that starts with "?" may be missing.
NULL, CHANGES = type(None), {...: object}
ROW = {"name": str, "?changes": CHANGES, "?teacher_changes": CHANGES, "?teacher": str}
ROWS = (ROW | {"cells": [(NULL, [(str, int, float, NULL)])]}, ROW | {"experiments": [(NULL, str)]})
SWEEP_ROW = {"name": str, "experiment": str, "change": str, "?changes": CHANGES, "?teacher_changes": CHANGES}
DEFENCE = {"student": str, "?changes": CHANGES, "?teacher_changes": CHANGES, "?strengths": {...: [object]}}
ABOUT = {"title": str, "source": str}
TABLE = ABOUT | {"columns": [str], "rows": [ROWS], "?teacher_seed": int}
TABLE |= {"?conclusion": {"alone": int, "normal": int, "nasty": int}}
SWEEP = ABOUT | {"key": str, "values": [object], "rows": [SWEEP_ROW], "?part": str}
DEFENDED = ABOUT | {"alone": str, "attacks": {...: CHANGES}, "template": {"defended": str, "undefended": str}}
MATRIX = DEFENDED | {"yardstick": CHANGES, "?control": CHANGES, "defences": {...: str}}
BENCHMARK = DEFENDED | {"presets": [str], "draws": int, "seeds": [int], "tuning_seed": int, "defences": {...: DEFENCE}}
BENCHMARK |= {"?more_attacks": {...: CHANGES}}
FORMS = {"benchmark": BENCHMARK, "matrix": MATRIX, "sweep": SWEEP, "table": TABLE}
WORDS = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number", NULL: "null"}


def check_entries(entries, where):
    """Return `entries`, {name: entry, or the name of an entry}. Raises UserError with the first problem in them.

    where: the name of the file, for the message.
    """
    for name, entry in entries.items():
        if isinstance(entry, str):
            problem = None if isinstance(entries.get(entry), dict) else f": there is no entry {json.dumps(entry)}"
        else:
            problem = misfit(entry, FORMS[kind_of(entry)]) or inconsistent(entry)
        if problem:
            raise UserError(f'{where}: "{shorten(name)}"{problem}')
    return entries


def kind_of(entry):
    """The kind of an entry, a name in FORMS. It depends on the names in the entry."""
    names = entry if isinstance(entry, dict) else ()
    telling = {"presets": "benchmark", "defences": "matrix", "values": "sweep"}
    return next((kind for name, kind in telling.items() if name in names), "table")


def misfit(value, form):
    """Where `value` does not have this form, as the end of a sentence; None if it does."""
    if isinstance(form, tuple):
        problems = [misfit(value, option) for option in form]
        return None if None in problems else problems[0]
    if isinstance(form, list):
        return first_misfit(value, list, lambda: [(str(n), part, form[0]) for n, part in enumerate(value, 1)])
    if isinstance(form, dict) and ... in form:
        return first_misfit(value, dict, lambda: [(name, part, form[...]) for name, part in value.items()])
    if isinstance(form, dict):
        parts = {name.lstrip("?"): part for name, part in form.items()}
        missing = [name for name in form if isinstance(value, dict) and name[0] != "?" and name not in value]
        if missing:
            return f': has no "{missing[0]}"'
        return first_misfit(value, dict, lambda: [(n, value[n], part) for n, part in parts.items() if n in value])
    fits = form is object or (isinstance(value, form) and not isinstance(value, bool))
    return None if fits else must_be(form, value)


def first_misfit(value, kind, parts):
    """The first problem of `value`: it is not of this kind, or a part does not have its form.

    parts: a function that returns a list of (name, part, form).
    """
    if not isinstance(value, kind):
        return must_be(kind, value)
    problems = ((name, misfit(part, form)) for name, part, form in parts())
    return next((f": {shorten(name)}{problem}" for name, problem in problems if problem), None)


def must_be(kind, value):
    return f": must be {WORDS[kind]}, not {shorten(json.dumps(value))}"


def inconsistent(entry):
    """A contradiction between parts of an entry that has the right form, as the end of a sentence; None without one."""
    for row in entry["rows"] if "columns" in entry else ():
        cells = row.get("cells", row.get("experiments"))
        pairs = [cell for cell in row.get("cells", ()) if cell is not None]
        if not all(len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is not str for pair in pairs):
            return f": row {row['name']}: a cell must be [experiment, published accuracy or null]"
        if not cells or len(cells) != len(entry["columns"]):
            return f": row {row['name']}: {len(cells)} cells for {len(entry['columns'])} columns"
    numbers = entry.get("conclusion", {})
    if not all(0 <= number < len(entry["rows"]) for number in numbers.values()):
        return ": conclusion: must be numbers of rows, from 0"
    if "key" in entry and not all(row["change"] in ("own", "teacher") for row in entry["rows"]):
        return ': rows: "change" must be own or teacher'
    if entry.get("part", "test") not in ("test", "validation"):
        return ': "part" must be test or validation'
    return None
