"""The tables, sweeps and matrices of experiments/tables.json, with a Spec in each cell. forms.py describes the file."""

import dataclasses
from dataclasses import dataclass

from study import new_methods
from study.forms import check_entries
from training import spec
from training.changes import check_common
from training.spec import Spec
from utils.errors import UserError, suggest
from utils.paths import display_path, from_root, read_json

NO_MATRIX = "--rows and --columns need a matrix; {} is not a matrix"


@dataclass(frozen=True)
class Cell:
    """The runs of one cell of a table: a Spec, whose seed does not count.

    published: accuracy in percent. epoch: the epoch whose accuracy is shown, "best" or "last". part: the images of the
    accuracy, "test" or "validation".
    """

    spec: Spec
    published: float | None = None
    epoch: str = "best"
    part: str = "test"


@dataclass(frozen=True)
class Table:
    """A table of runs. source: the table of the paper, or another origin, in words."""

    title: str
    source: str
    columns: list
    rows: list  # of (name, one Cell or None per column)
    conclusion: dict = dataclasses.field(default_factory=dict)  # {"alone": number of its row, "normal": …, "nasty": …}

    def cells(self):
        return [cell for _, cells in self.rows for cell in cells if cell]


@dataclass(frozen=True)
class Matrix(Table):
    """Defences × attacks. The first cell of a row is the teacher, the others the student of each attack.

    alone, yardstick, control: students without a teacher; see forms.py. new: the columns that are not in
    experiments/tables.json.
    """

    alone: Cell = None
    yardstick: Cell = None
    control: Cell | None = None
    new: tuple = ()

    def cells(self):
        return [self.alone, self.yardstick, *([self.control] if self.control else []), *super().cells()]


def read_targets():
    """{name: entry} of experiments/tables.json."""
    path = from_root("experiments/tables.json")
    return check_entries(read_json(path), display_path(path))


def read_target(name):
    """The entry of the target `name`. Raises UserError with all names if there is none."""
    targets = read_targets()
    if name not in targets:
        raise UserError(f'unknown target "{name}"; there are {", ".join(targets)}{suggest(name, targets)}')
    return targets[name] if isinstance(targets[name], dict) else targets[targets[name]]


def load_table(name, common=None, rows=None, columns=None):
    """The Table of a target.

    common: {key: value} changed in all of its runs. rows, columns: for a matrix, names of its defences and attacks, or
    of new files in method/defend/ and method/attack/; default: all of its own. A key of `common` that a new file
    declares is changed only where this file is used. Raises UserError for an unknown name.
    """
    entry, common = read_target(name), common or {}
    if "presets" in entry:
        raise UserError(f"{name} is a benchmark, not a table")
    if "defences" in entry:
        return load_matrix(entry, common, rows, columns)
    if rows or columns:
        raise UserError(NO_MATRIX.format(name))
    make_row = row_of_sweep if "values" in entry else row_of_table
    headers = entry.get("columns") or [f"{entry['key']} {value}" for value in entry["values"]]
    found = [(row["name"], make_row(row, entry, common)) for row in entry["rows"]]
    return Table(entry["title"], entry["source"], headers, found, entry.get("conclusion", {}))


def load_table_to_print(name, common=None, rows=None, columns=None):
    """As `load_table`. But if only new rows, or only new columns, are selected, all others are printed before them."""
    entry = read_target(name)
    if "defences" in entry and not (rows and columns):
        rows, columns = add_new(entry["defences"], rows), add_new(entry["attacks"], columns)
    return load_table(name, common, rows, columns)


def add_new(present, names):
    return [*present, *names] if names and not set(names) & set(present) else names


def row_of_table(row, entry, common):
    cells = row.get("cells") or [experiment and (experiment, None) for experiment in row["experiments"]]
    return [cell and Cell(make_in_row(row, cell[0], common), cell[1]) for cell in cells]


def make_in_row(row, experiment, common):
    """The Spec of an experiment in a row of a table, with the changes of the row."""
    changes, teacher, teacher_changes = row.get("changes", {}), row.get("teacher"), row.get("teacher_changes", {})
    if "teacher_resume" not in spec.definition(f"experiments/{experiment}"):  # a teacher
        return make_spec(experiment, changes=changes | teacher_changes, common=common)
    if teacher:
        file = teacher if teacher.endswith(".tar") else f"{teacher}/best_model.tar"
        changes = changes | {"teacher_resume": f"experiments/{file}"}
    return make_spec(experiment, changes=changes, teacher_changes=teacher_changes, common=common)


def row_of_sweep(row, entry, common):
    cells = []
    for value in entry["values"]:
        changes = {"own": row.get("changes", {}), "teacher": row.get("teacher_changes", {})}
        changes[row["change"]] = changes[row["change"]] | {entry["key"]: value}
        run = make_spec(row["experiment"], changes=changes["own"], teacher_changes=changes["teacher"], common=common)
        cells.append(Cell(run, part=entry.get("part", "test")))
    return cells


def make_spec(experiment, **arguments):
    """The Spec of an experiment as tables.json names it."""
    return spec.make(f"experiments/{experiment}", **arguments)


def load_matrix(entry, common, rows, columns):
    new_rows = [name for name in rows or () if name not in entry["defences"]]
    new_columns = [name for name in columns or () if name not in entry["attacks"]]
    new_methods.check("rows", new_rows, entry["defences"], "defend")
    new_methods.check("columns", new_columns, entry["attacks"], "attack")
    declared = {name: new_methods.declared_keys(name) for name in (*new_rows, *new_columns)}
    own = {name: {key: common[key] for key in common if key in keys} for name, keys in declared.items()}
    keys = {key for part in declared.values() for key in part}
    common = check_common({key: value for key, value in common.items() if key not in keys}, keys)

    defences = {name: {"student": student} for name, student in entry["defences"].items()}
    defences |= {name: new_methods.defence(name, entry["template"], own[name]) for name in new_rows}
    attacks = entry["attacks"] | {name: new_methods.attack(name, entry, own[name]) for name in new_columns}
    attacks = {name: attacks[name] for name in columns or attacks}
    found = [(name, row_of_matrix(defences[name], attacks, common)) for name in rows or defences]
    alone = Cell(make_spec(entry["alone"], common=common))
    own = {
        name: Cell(make_spec(entry["alone"], changes=entry[name], common=common))
        for name in ("yardstick", "control")
        if name in entry
    }
    headers = ["teacher", *attacks]
    return Matrix(entry["title"], entry["source"], headers, found, alone=alone, **own, new=tuple(new_columns))


def row_of_matrix(defence, attacks, common):
    """The cells of a row: the teacher as its students load it, and the student of each attack."""
    student, changes = defence["student"], defence.get("changes", {})
    plain = make_spec(student, changes=changes, teacher_changes=defence.get("teacher_changes"), common=common)
    teacher = Cell(plain.sources["teacher_resume"], epoch=loaded_epoch(plain))
    specs = [
        make_spec(student, changes=changes | attack, teacher_changes=defence.get("teacher_changes"), common=common)
        for attack in attacks.values()
    ]
    return [teacher, *map(Cell, specs)]


def loaded_epoch(student):
    """The epoch of the teacher that the student of a Spec loads: "best" or "last"."""
    return "last" if student.raw["teacher_resume"].endswith("last_model.tar") else "best"


def published():
    """{experiment: published accuracy in percent} of all tables."""
    entries = [entry for entry in read_targets().values() if isinstance(entry, dict) and "columns" in entry]
    cells = [
        cell
        for entry in entries
        for row in entry["rows"]
        if "teacher" not in row
        for cell in row.get("cells", ())
        if cell
    ]
    return {f"experiments/{experiment}": number for experiment, number in cells if number is not None}
