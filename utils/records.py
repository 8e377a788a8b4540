"""What the runs of an experiment came to: accuracies over its seeds, from their metrics.jsonl."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import model
from utils.checkpoint import ROOT, shown
from utils.errors import UserError
from utils.params import check, read
from utils.plan import is_derived, run_folder

# 0.975 quantile of Student's t for 1, 2, … degrees of freedom
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass
class Summary:
    """{seed: accuracy in percent} of the finished runs of an experiment, and how far the others are."""

    best: dict
    last: dict
    unfinished: list  # "12/160 epochs"

    def over(self, other):
        """By how much its best epochs exceed another Summary's: a list, one number for each seed that both have."""
        return [accuracy - other.best[seed] for seed, accuracy in self.best.items() if seed in other.best]

    def inside(self, published):
        """Whether a published accuracy lies in the 95 % prediction interval, mean ± t(n−1) s √(1 + 1/n)."""
        n = len(self.best)
        if published is None or n < 2:
            return None
        spread = t_975(n - 1) * deviation(self.best.values()) * math.sqrt(1 + 1 / n)
        return abs(published - mean(self.best.values())) <= spread


def t_975(freedom):
    """0.975 quantile of Student's t: tabulated, and for more than 15 degrees of freedom its expansion in 1/freedom."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


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


def read_metrics(path):
    """The records of a metrics.jsonl, one an epoch; a last line that is just being written does not count."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"{shown(path)}: line {number}: {error.msg}") from None
    return records


def summarise(runs):
    """The Summary of some run folders, from their metrics.jsonl."""
    summary = Summary({}, {}, [])
    for run in runs:
        accuracies = [epoch["test"]["acc"] for epoch in read_metrics(run / "metrics.jsonl")]
        params = check(read(run / "params.json"), run / "params.json")
        if len(accuracies) >= params.num_epochs:
            summary.best[params.seed], summary.last[params.seed] = max(accuracies), accuracies[-1]
        elif accuracies:
            summary.unfinished.append(f"{len(accuracies)}/{params.num_epochs} epochs")
    return summary


def record(run, numbers, plain=None, alone=None, changes=None):
    """All that is known of a run folder (seeds apart), as a flat dictionary; numbers: `published()`.

    Its difference is to the experiment `alone`, of a student by default to its `baseline`. changes: {key: value} that
    are changed in both; plain: the run folder without these.
    """
    summary, published = summarise(runs_of(run)), numbers.get(plain or run)
    experiment = Path(run).with_name(Path(run).name.split(",")[0])
    raw = read((*runs_of(run), ROOT / experiment)[0] / "params.json")
    teacher = raw.get("teacher_resume") or raw.get("adversarial_resume")
    if alone is None and "teacher_resume" in raw:
        alone = baseline(experiment, raw)
    gains = summary.over(summarise(runs_of(run_folder(alone, changes)))) if alone else []
    return {
        "experiment": run.removeprefix("experiments/"),
        "teacher": Path(teacher).parent.name if teacher else "",
        "n": len(summary.best),
        "best": mean(summary.best.values()),
        "best_sd": deviation(summary.best.values()),
        "last": mean(summary.last.values()),
        "last_sd": deviation(summary.last.values()),
        "difference": mean(gains),
        "difference_sd": deviation(gains),
        "difference_n": len(gains),
        "published": published,
        "published_difference": minus(published, numbers.get(alone)),
        "published_inside": summary.inside(published),
        "unfinished": ", ".join(summary.unfinished),
    }


def baseline(experiment, raw):
    """The experiment in `baseline/` beside a student's folder that trains its network alone: its namesake first."""
    folder = experiment.parent.parent / "baseline"
    if (ROOT / folder / experiment.name / "params.json").exists():
        return str(folder / experiment.name)
    of_network = {"model_name": None} | model.options(raw["model_name"])
    for path in sorted((ROOT / folder).glob("*/params.json")):
        other = read(path)
        same = all(other.get(key, usual) == raw.get(key, usual) for key, usual in of_network.items())
        if same and not is_derived(path.parent):
            return str(folder / path.parent.name)
    return None


def minus(a, b):
    return None if a is None or b is None else a - b


def mean(values):
    return statistics.mean(values) if values else None


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else None
