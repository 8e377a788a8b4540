"""Targets and their tables: ours ± deviation beside the paper's.

What a target consists of is data, experiments/tables.json. Its `rows` hold cells of [experiment, published accuracy];
a sweep has instead a `key`, its `values`, and rows of experiments whose own or whose teacher's key is changed. A matrix
has `defences`, each a student of its teacher, and `attacks`, the keys that are changed in that student; `alone` is the
student without a teacher, `yardstick` what is changed in that.
"""

from dataclasses import dataclass, field
from pathlib import Path

from utils import plan as plans
from utils.checkpoint import ROOT
from utils.errors import UserError, suggest
from utils.params import read


@dataclass
class Cell:
    """One experiment of a table: how its runs are made, and the published accuracy in percent."""

    experiment: str
    published: float | None = None
    changes: dict = field(default_factory=dict)
    teacher_changes: dict = field(default_factory=dict)
    epoch: str = "best"  # or "last": the epoch that counts

    def add_to(self, plan, everywhere):
        """Plan this experiment; the folder of its run. everywhere: {key: value} for it and all that it depends on."""
        return plan.add(self.experiment, self.changes, self.teacher_changes, everywhere)


@dataclass
class Table:
    title: str
    source: str
    columns: list
    rows: list  # of (name, one Cell or None a column)

    def cells(self):
        return [cell for _, cells in self.rows for cell in cells if cell]


@dataclass
class Matrix(Table):
    """Defences × attacks: a row has the teacher, and the student of each attack."""

    alone: Cell
    yardstick: Cell

    def cells(self):
        return [self.alone, self.yardstick, *super().cells()]


def read_targets():
    """{name: description, or the name of the target it is another word for}, from experiments/tables.json."""
    return read(ROOT / "experiments" / "tables.json")


def load_table(name):
    """The Table of a target. UserError lists the targets there are."""
    targets = read_targets()
    if name not in targets:
        raise UserError(f'unknown target "{name}"; there are {", ".join(targets)}{suggest(name, targets)}')
    data = targets[name] if isinstance(targets[name], dict) else targets[targets[name]]
    if "defences" in data:
        return load_matrix(data)
    columns = data.get("columns") or [f"{data['key']} {value}" for value in data["values"]]
    return Table(data["title"], data["source"], columns, [(row["name"], row_cells(row, data)) for row in data["rows"]])


def row_cells(row, data):
    if "cells" in row:
        return [cell and Cell(f"experiments/{cell[0]}", cell[1]) for cell in row["cells"]]
    which = {"own": "changes", "teacher": "teacher_changes"}[row["change"]]
    return [Cell(f"experiments/{row['experiment']}", **{which: {data["key"]: value}}) for value in data["values"]]


def load_matrix(data):
    """The Matrix of an entry of experiments/tables.json."""
    rows = []
    for defence, student in data["defences"].items():
        experiment = f"experiments/{student}"
        teacher = Path(read(ROOT / experiment / "params.json")["teacher_resume"])
        used = "last" if teacher.name == "last_model.tar" else "best"  # what its students have before them
        attacks = [Cell(experiment, changes=changes) for changes in data["attacks"].values()]
        rows.append((defence, [Cell(str(teacher.parent), epoch=used), *attacks]))
    alone = f"experiments/{data['alone']}"
    own = Cell(alone), Cell(alone, changes=data["yardstick"])
    return Matrix(data["title"], data["source"], ["teacher", *data["attacks"]], rows, *own)


def is_folder(target):
    """Whether a target is a folder of experiments rather than a name; names win only where there is no folder."""
    return plans.located(target).is_dir()


def plan_target(target, plan, seeds, changes):
    """Add all experiments of a target to `plan`, once for each of `seeds`; None is the experiment's own.

    changes: {key: value} for all of them.
    """
    if is_folder(target):
        cells = [Cell(experiment) for experiment in plans.experiments_below(target)]
    else:
        cells = load_table(target).cells()
    for seed in seeds:
        for cell in cells:
            cell.add_to(plan, changes | ({} if seed is None else {"seed": seed}))


def run_of(cell, changes=None):
    """The run folder of a cell, seeds apart. changes: {key: value} for it and all that it depends on."""
    return cell.add_to(plans.Plan(), changes or {})


def published():
    """{experiment: accuracy in percent} of everything that has a published number."""
    tables = [load_table(name) for name, data in read_targets().items() if isinstance(data, dict) and "columns" in data]
    return {cell.experiment: cell.published for table in tables for cell in table.cells()}
