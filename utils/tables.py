"""Targets and their tables: ours ± deviation beside the paper's.

What a target consists of is data, experiments/tables.json. Its `rows` hold cells of [experiment, published accuracy];
a sweep has instead a `key`, its `values`, and rows of experiments whose own or whose teacher's key is changed.
"""

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from utils import plan as plans
from utils.checkpoint import ROOT
from utils.errors import UserError, suggest
from utils.params import check, read

# 0.975 quantile of Student's t for 1, 2, … degrees of freedom
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass
class Cell:
    """One experiment of a table: how its runs are made, and the published accuracy in percent."""

    experiment: str
    published: float | None = None
    changes: dict = field(default_factory=dict)
    teacher_changes: dict = field(default_factory=dict)

    def add_to(self, plan, seed=None):
        """Plan this experiment; the folder of its run."""
        return plan.add(self.experiment, self.changes, self.teacher_changes, seed)


@dataclass
class Table:
    title: str
    source: str
    columns: list
    rows: list  # of (name, one Cell or None a column)

    def cells(self):
        return [cell for _, cells in self.rows for cell in cells if cell]


@dataclass
class Summary:
    """Accuracies in percent over the finished runs of an experiment, and how far the others are."""

    best: list
    last: list
    unfinished: list  # "12/160 epochs"

    def inside(self, published):
        """Whether a published accuracy lies in the 95 % prediction interval, mean ± t(n−1) s √(1 + 1/n)."""
        n = len(self.best)
        if published is None or n < 2:
            return None
        spread = t_975(n - 1) * statistics.stdev(self.best) * math.sqrt(1 + 1 / n)
        return abs(published - statistics.mean(self.best)) <= spread


def t_975(freedom):
    """0.975 quantile of Student's t: tabulated, and for more than 15 degrees of freedom its expansion in 1/freedom."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def read_targets():
    """{name: description, or the name of the target it is another word for}, from experiments/tables.json."""
    return read(ROOT / "experiments" / "tables.json")


def load_table(name):
    """The Table of a target. UserError lists the targets there are."""
    targets = read_targets()
    if name not in targets:
        raise UserError(f'unknown target "{name}"; there are {", ".join(targets)}{suggest(name, targets)}')
    data = targets[name] if isinstance(targets[name], dict) else targets[targets[name]]
    columns = data.get("columns") or [f"{data['key']} {value}" for value in data["values"]]
    return Table(data["title"], data["source"], columns, [(row["name"], row_cells(row, data)) for row in data["rows"]])


def row_cells(row, data):
    if "cells" in row:
        return [cell and Cell(f"experiments/{cell[0]}", cell[1]) for cell in row["cells"]]
    which = {"own": "changes", "teacher": "teacher_changes"}[row["change"]]
    return [Cell(f"experiments/{row['experiment']}", **{which: {data["key"]: value}}) for value in data["values"]]


def is_folder(target):
    """Whether a target is a folder of experiments rather than a name; names win only where there is no folder."""
    return (ROOT / target).is_dir()


def plan_target(target, seeds, plan):
    """Add all experiments of a target to `plan`, once for each of `seeds`; None is the experiment's own."""
    if is_folder(target):
        cells = [Cell(experiment) for experiment in plans.experiments_below(target)]
    else:
        cells = load_table(target).cells()
    for seed in seeds:
        for cell in cells:
            cell.add_to(plan, seed)


def run_of(cell):
    """The run folder of a cell, seeds apart."""
    return cell.add_to(plans.Plan())


def runs_of(run):
    """The run folder `run` and those beside it that differ in their seed alone, as far as they exist."""
    wanted, folder = split_seed(Path(run).name)[0], (ROOT / run).parent
    found = [path for path in folder.glob("*/params.json") if split_seed(path.parent.name)[0] == wanted]
    return sorted((path.parent for path in found), key=lambda path: split_seed(path.name)[1])


def split_seed(name):
    """("cnn,alpha=0.5", 1) from "cnn,alpha=0.5,seed=1"; the seed is −1 where the name has none."""
    tags = name.split(",")
    seeds = [int(tag[5:]) for tag in tags if tag.startswith("seed=") and tag[5:].isdecimal()]
    return ",".join(tag for tag in tags if not tag.startswith("seed=")), seeds[0] if seeds else -1


def summarise(runs):
    """The Summary of some run folders, from their metrics.jsonl."""
    summary = Summary([], [], [])
    for run in runs:
        path = run / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a run may be writing its next line just now
        accuracies = [json.loads(line)["test"]["acc"] for line in whole.splitlines()]
        length = check(read(run / "params.json"), run / "params.json").num_epochs
        if len(accuracies) >= length:
            summary.best.append(max(accuracies))
            summary.last.append(accuracies[-1])
        elif accuracies:
            summary.unfinished.append(f"{len(accuracies)}/{length} epochs")
    return summary


def published():
    """{experiment: accuracy in percent} of everything that has a published number."""
    tables = [load_table(name) for name, data in read_targets().items() if isinstance(data, dict) and "columns" in data]
    return {cell.experiment: cell.published for table in tables for cell in table.cells()}


def record(run, numbers):
    """All that is known of a run folder (seeds apart), as a flat dictionary; numbers: `published()`.

    A student's difference is to its baseline, the same network trained alone in `baseline/` beside its folder.
    """
    summary, published = summarise(runs_of(run)), numbers.get(run)
    experiment = Path(run).with_name(Path(run).name.split(",")[0])
    raw = read(ROOT / experiment / "params.json")
    teacher = raw.get("teacher_resume") or raw.get("adversarial_resume")
    baseline = experiment.parent.parent / "baseline" / experiment.name
    alone = summarise(runs_of(baseline)).best if "teacher_resume" in raw else []
    their_alone = numbers.get(str(baseline)) if "teacher_resume" in raw else None
    return {
        "experiment": run.removeprefix("experiments/"),
        "teacher": Path(teacher).parent.name if teacher else "",
        "n": len(summary.best),
        "best": mean(summary.best),
        "best_sd": deviation(summary.best),
        "last": mean(summary.last),
        "last_sd": deviation(summary.last),
        "difference": minus(mean(summary.best), mean(alone)),
        "published": published,
        "published_difference": minus(published, their_alone),
        "published_inside": summary.inside(published),
        "unfinished": ", ".join(summary.unfinished),
    }


def minus(a, b):
    return None if a is None or b is None else a - b


def mean(values):
    return statistics.mean(values) if values else None


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else None
