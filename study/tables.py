"""The entries of experiments/tables.json, and tables and sweeps with a Spec in each cell.

forms.py describes the file. matrices.py makes matrices, and targets.py makes the table of any name.
"""

import dataclasses
import functools
from dataclasses import dataclass, replace

from study.forms import check_entries, kind_of
from training import spec
from training.spec import Spec
from utils.errors import UserError, suggest
from utils.paths import display_path, from_root, read_json, version


@dataclass(frozen=True)
class Cell:
    """The runs of one cell of a table: those of a Spec, with all seeds.

    published: accuracy in percent. epoch: the epoch whose accuracy is shown, "best" or "last". part: the images of the
    accuracy, "test" or "validation". only_seed: the seed with which the cell is reproduced; None: any seed.
    """

    spec: Spec
    published: float | None = None
    epoch: str = "best"
    part: str = "test"
    only_seed: int | None = None

    def with_seed(self, seed):
        """The Spec of the run that reproduces the cell with `seed`; None: the seed of its definition."""
        seed = seed if self.only_seed is None else self.only_seed
        return self.spec if seed is None else self.spec.with_seed(seed)


@dataclass(frozen=True)
class Table:
    """A table of runs. source: the table of the paper, or another origin, in words."""

    title: str
    source: str
    columns: list
    rows: list  # of (name, one Cell or None per column)
    conclusion: dict = dataclasses.field(default_factory=dict)  # {"alone": number of its row, "normal": …, "nasty": …}

    def cells(self):
        """All cells, row by row."""
        return [cell for _, cells in self.rows for cell in cells if cell]


def read_targets():
    """{name: entry} of experiments/tables.json."""
    path = from_root("experiments/tables.json")
    check_file(path, version(path))
    return read_json(path)


@functools.cache
def check_file(path, version):
    """Check the entries of the file `path`. A file that has not changed is checked once."""
    check_entries(read_json(path), display_path(path))


def read_entries():
    """{name: entry}, like `read_targets`. If a name stands for another name, it has the entry of the other name."""
    targets = read_targets()
    return {name: entry if isinstance(entry, dict) else targets[entry] for name, entry in targets.items()}


def read_target(name):
    """The entry of the target `name`. Raises UserError with all names if there is none."""
    entries = read_entries()
    if name not in entries:
        raise UserError(f'unknown target "{name}"; there are {", ".join(entries)}{suggest(name, entries)}')
    return entries[name]


def find_entry(name, kind):
    """The entry of the target `name`, which must be of this kind, a name in `forms.FORMS`.

    Raises UserError with the names of all such entries if there is none.
    """
    entries = {other: entry for other, entry in read_entries().items() if kind_of(entry) == kind}
    if name not in entries:
        raise UserError(f'"{name}" is not a {kind}; there are {", ".join(entries)}{suggest(name, entries)}')
    return entries[name]


def row_of_table(row, entry, common):
    """The cells of a row of a table. common: {key: value} changed in all runs."""
    cells = row.get("cells") or [experiment and (experiment, None) for experiment in row["experiments"]]
    return [cell and Cell(make_in_row(row, entry, cell[0], common), cell[1]) for cell in cells]


def with_seeds_of_teachers(rows, seed):
    """`rows` of a Table, in which the cells of teachers are reproduced with this seed only."""
    students = [cell.spec for _, cells in rows for cell in cells if cell]
    teachers = {source.any_seed for student in students for source in student.sources.values()}
    return [
        (name, [replace(cell, only_seed=seed) if cell and cell.spec.any_seed in teachers else cell for cell in cells])
        for name, cells in rows
    ]


def make_in_row(row, entry, experiment, common):
    """The Spec of an experiment in a row of a table, with the changes of the row."""
    changes, teacher, teacher_changes = row.get("changes", {}), row.get("teacher"), row.get("teacher_changes", {})
    if "teacher_resume" not in spec.definition(f"experiments/{experiment}"):  # a teacher, or a student without one
        return make_spec(experiment, changes=changes | teacher_changes, common=common)
    if teacher:
        file = teacher if teacher.endswith(".tar") else f"{teacher}/best_model.tar"
        changes = changes | {"teacher_resume": f"experiments/{file}"}
    if "teacher_seed" in entry:
        teacher_changes = {"seed": entry["teacher_seed"]} | teacher_changes
    return make_spec(experiment, changes=changes, teacher_changes=teacher_changes, common=common)


def row_of_sweep(row, entry, common):
    """The cells of a row of a sweep, one for each value of the key of its entry."""
    cells = []
    for value in entry["values"]:
        changes = {"own": row.get("changes", {}), "teacher": row.get("teacher_changes", {})}
        changes[row["change"]] = changes[row["change"]] | {entry["key"]: value}
        run = make_spec(row["experiment"], changes=changes["own"], teacher_changes=changes["teacher"], common=common)
        cells.append(Cell(run, part=entry.get("part", "test")))
    return cells


def make_spec(experiment, **arguments):
    """The Spec of an experiment with the name that it has in tables.json."""
    return spec.make(f"experiments/{experiment}", **arguments)


def loaded_epoch(student):
    """The epoch of the teacher that the student of a Spec loads: "best" or "last"."""
    return "last" if student.raw["teacher_resume"].endswith("last_model.tar") else "best"


def published():
    """{experiment: published accuracy in percent} of all tables, without the rows that have an item `teacher`."""
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
