"""Targets: the tables of experiments/tables.json, and folders of experiments.

An entry of tables.json is one of
- a table: `rows` of cells [experiment, published accuracy], below `columns`;
- a sweep: a `key`, its `values`, and `rows` of experiments in which it is changed, or in whose teacher it is changed;
- a matrix: `defences`, each the student of a defended teacher, and `attacks`, keys to change in that student; `alone`
  is the student without a teacher, `yardstick` keys to change in that; `template` names the teacher and the student
  from which rows of new defences are made;
- the name of another entry.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import method
from training import spec
from training.spec import Spec
from utils.errors import UserError, suggest
from utils.jsonfile import read_json
from utils.paths import display_path, from_root


@dataclass(frozen=True)
class Cell:
    """One run of a table, whatever its seed. published: accuracy in percent. epoch: "best" or "last", which counts."""

    spec: Spec
    published: float | None = None
    epoch: str = "best"


@dataclass(frozen=True)
class Table:
    title: str
    source: str
    columns: list
    rows: list  # of (name, one Cell or None per column)
    conclusion: dict = dataclasses.field(default_factory=dict)  # {"alone": number of its row, "normal": …, "nasty": …}

    def cells(self):
        return [cell for _, cells in self.rows for cell in cells if cell]


@dataclass(frozen=True)
class Matrix(Table):
    """Defences × attacks. The first cell of a row is the teacher, the others the student of each attack."""

    alone: Cell = None
    yardstick: Cell = None
    yardstick_changes: dict = None

    def cells(self):
        return [self.alone, self.yardstick, *super().cells()]


def read_targets():
    """{name: entry} of experiments/tables.json."""
    return read_json(from_root("experiments/tables.json"))


def read_target(name):
    """The entry of the target `name`. Raises UserError with all names if there is none."""
    targets = read_targets()
    if name not in targets:
        raise UserError(f'unknown target "{name}"; there are {", ".join(targets)}{suggest(name, targets)}')
    return targets[name] if isinstance(targets[name], dict) else targets[targets[name]]


def load_table(name, common=None, rows=None, columns=None):
    """The Table of a target.

    common: {key: value} changed in all of its runs. rows, columns: of a matrix, names of its defences and attacks, or
    of files in method/defend/ and method/attack/ that it does not have yet; default: all that it has. Keys of `common`
    that only such a file declares are changed where it is used.
    """
    entry, common = read_target(name), common or {}
    if "defences" in entry:
        return load_matrix(entry, common, rows, columns)
    if rows or columns:
        raise UserError(f"--rows and --columns select from a matrix; {name} is none")
    make_row = row_of_sweep if "values" in entry else row_of_table
    headers = entry.get("columns") or [f"{entry['key']} {value}" for value in entry["values"]]
    found = [(row["name"], make_row(row, entry, common)) for row in entry["rows"]]
    return Table(entry["title"], entry["source"], headers, found, entry.get("conclusion", {}))


def row_of_table(row, entry, common):
    return [cell and Cell(make(cell[0], common=common), cell[1]) for cell in row["cells"]]


def row_of_sweep(row, entry, common):
    argument = {"own": "changes", "teacher": "teacher_changes"}[row["change"]]
    return [Cell(make(row["experiment"], common=common, **{argument: {entry["key"]: v}})) for v in entry["values"]]


def make(experiment, **arguments):
    """The Spec of an experiment as tables.json names it."""
    return spec.make(f"experiments/{experiment}", **arguments)


def load_matrix(entry, common, rows, columns):
    defences = {name: {"student": student} for name, student in entry["defences"].items()}
    attacks = dict(entry["attacks"])
    common, own = dict(common), {}
    for name in [name for name in (*(rows or ()), *(columns or ())) if name not in defences and name not in attacks]:
        declared = declared_keys(name)
        own[name] = {key: common.pop(key) for key in list(common) if key in declared}
    defences |= {name: new_defence(name, entry, own[name]) for name in rows or () if name in own}
    attacks |= {name: defaults_of(name) | own[name] | {"method": name} for name in columns or () if name in own}
    found = []
    for name in rows or defences:
        if name not in defences:
            raise UserError(f"--rows {name}: no such defence; there are {', '.join(defences)}{suggest(name, defences)}")
        found.append((name, row_of_matrix(defences[name], {c: attacks[c] for c in columns or attacks}, common)))
    alone = Cell(make(entry["alone"], common=common))
    yardstick = Cell(make(entry["alone"], changes=entry["yardstick"], common=common))
    headers = ["teacher", *(columns or attacks)]
    return Matrix(
        entry["title"], entry["source"], headers, found, {}, alone=alone, yardstick=yardstick,
        yardstick_changes=entry["yardstick"],
    )  # fmt: skip


def row_of_matrix(defence, attacks, common):
    """The cells of a row: the teacher as its students load it, and the student of each attack."""
    student, changes = defence["student"], defence.get("changes", {})
    plain = make(student, changes=changes, teacher_changes=defence.get("teacher_changes"), common=common)
    file = plain.raw["teacher_resume"]
    teacher = Cell(plain.sources["teacher_resume"], epoch="last" if file.endswith("last_model.tar") else "best")
    specs = [
        make(student, changes=changes | attack, teacher_changes=defence.get("teacher_changes"), common=common)
        for attack in attacks.values()
    ]
    return [teacher, *map(Cell, specs)]


def new_defence(name, entry, keys):
    """The row of a matrix for the file `name` in method/defend/: its experiment, and the keys to change in it."""
    template = entry["template"]
    if is_rule(name):
        return {"student": template["undefended"], "changes": defaults_of(name) | keys | {"release": name}}
    if method.kind(name) != "defend":
        raise UserError(f"--rows {name}: is an attack; use --columns {name}")
    return {"student": template["defended"], "teacher_changes": defaults_of(name) | keys | {"method": name}}


def is_rule(name):
    """Whether the file `name` defines a release rule and no method."""
    return method.is_release(name) and name not in method.names()["defend"]


def declared_keys(name):
    """{key: dataclass field} that the file `name` in method/ declares."""
    found = method.find_release(name) if is_rule(name) else method.find(name)
    return {field.name: field for field in dataclasses.fields(found.Params)}


def defaults_of(name):
    """{key: default} of the keys that the file `name` declares."""
    fields = declared_keys(name).items()
    return {
        key: field.default
        for key, field in fields
        if field.default is not dataclasses.MISSING and key not in ("release",)
    }


def located(target):
    """The folder that a word on the command line means: in the working directory, or else in the project root."""
    return Path(target).absolute() if any(Path(target).rglob("params.json")) else from_root(target)


def is_folder(target):
    """Whether a target is a folder. A folder takes precedence over a table of the same name."""
    return located(target).is_dir()


def experiments_below(folder):
    """The experiments in `folder` and below, as specs name them. Runs with changed keys are not experiments."""
    return [spec.canonical_folder(path) for path in folders_below(folder) if spec.is_definition(path)]


def folders_below(folder):
    """All folders with a params.json in `folder` and below. Raises UserError if there is none."""
    folder = located(folder).resolve()
    found = sorted(path.parent for path in folder.rglob("params.json"))
    if not found:
        raise UserError(f"{display_path(folder)}: contains no experiment, that is, no folder with a params.json")
    return found


def specs_of(target, common=None, rows=None, columns=None):
    """The specs of a target, each with its own seed. Arguments as those of `load_table`."""
    if not is_folder(target):
        return [cell.spec for cell in load_table(target, common, rows, columns).cells()]
    if rows or columns:
        raise UserError(f"--rows and --columns select from a matrix; {target} is a folder")
    experiments = experiments_below(target)
    if not experiments:  # the folder of a run with changed keys
        return [spec.of_folder(display_path(path)) for path in folders_below(target)]
    return [spec.make(experiment, common=common) for experiment in experiments]


def published():
    """{experiment: published accuracy in percent} of all tables."""
    entries = [entry for entry in read_targets().values() if isinstance(entry, dict) and "columns" in entry]
    cells = [cell for entry in entries for row in entry["rows"] for cell in row["cells"] if cell]
    return {f"experiments/{experiment}": number for experiment, number in cells if number is not None}
