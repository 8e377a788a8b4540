"""Accuracies of finished runs, from two sources that are never averaged together.

`Recorded` reads the records in results/, which are part of the repository. `Local` reads the run folders on this
machine. Both return a Summary of all seeds of a run.
"""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

from training import spec
from utils.digest import read_line
from utils.errors import UserError
from utils.jsonfile import read_json
from utils.paths import display_path, from_root, version


@dataclass
class Summary:
    """{seed: accuracy in percent} of the finished runs of a spec, and "12/160 epochs" for each of the others."""

    best: dict = field(default_factory=dict)
    last: dict = field(default_factory=dict)
    unfinished: list = field(default_factory=list)

    def gains(self, other):
        """Best accuracy minus that of another Summary: a list with one number for each seed that both have."""
        return [accuracy - other.best[seed] for seed, accuracy in self.best.items() if seed in other.best]


class Recorded:
    """The records in results/."""

    name = "here"

    def runs_of(self, experiment):
        """The specs of all recorded runs of an experiment, without their seeds."""
        return [run for run in records_beside(experiment) if run.experiment == experiment]

    def histories(self, wanted):
        """{seed: {"train" or "test": {term: values per epoch}}} of the runs of the Spec `wanted`, whatever its seed."""
        records = records_beside(wanted.experiment).get(wanted.any_seed, [])
        return {record["seed"]: record for record in sorted(records, key=lambda record: record["seed"])}

    def summary(self, wanted):
        """The Summary of the runs of the Spec `wanted`, whatever its seed."""
        summary = Summary()
        for seed, record in self.histories(wanted).items():
            accuracies = record["test"]["acc"]
            if "planned_epochs" in record:
                summary.unfinished.append(f"{len(accuracies)}/{record['planned_epochs']} epochs")
            else:
                summary.best[seed], summary.last[seed] = max(accuracies), accuracies[-1]
        return summary


class Local:
    """The run folders on this machine. Folders are listed once in the lifetime of an object."""

    name = "yours"

    def __init__(self):
        self.listed = {}

    def runs_of(self, experiment):
        """The specs of all local runs of an experiment, without their seeds."""
        return [run for run in self.runs_beside(experiment) if run.experiment == experiment]

    def folders(self, wanted):
        """{seed: folder} of the runs of the Spec `wanted`, whatever its seed."""
        return dict(sorted(self.runs_beside(wanted.experiment).get(wanted.any_seed, {}).items()))

    def runs_beside(self, experiment):
        """{spec without seed: {seed: folder}} of the experiments in the parent folder, and their runs."""
        parent = from_root(experiment).parent
        if parent not in self.listed:
            self.listed[parent] = {}
            for path in sorted(parent.glob("*/params.json")):
                found = spec.of_folder(display_path(path.parent))
                self.listed[parent].setdefault(found.any_seed, {})[found.seed] = path.parent
        return self.listed[parent]

    def histories(self, wanted):
        """As `Recorded.histories`, of all runs that have finished an epoch, without those with validation images."""
        return {
            seed: columns(metrics)
            for seed, folder in self.folders(wanted).items()
            if (metrics := read_metrics(folder / "metrics.jsonl")) and "test" in metrics[0]
        }

    def summary(self, wanted):
        """The Summary of the runs of the Spec `wanted`, whatever its seed. Runs with validation images are left out."""
        summary = Summary()
        for seed, folder in self.folders(wanted).items():
            accuracies = [epoch["test"]["acc"] for epoch in read_metrics(folder / "metrics.jsonl") if "test" in epoch]
            length = read_json(folder / "params.json").get("num_epochs")
            if not isinstance(length, int):
                raise UserError(f'{display_path(folder)}/params.json: "num_epochs": must be a whole number')
            if accuracies and len(accuracies) >= length:
                summary.best[seed], summary.last[seed] = max(accuracies), accuracies[-1]
            elif accuracies:
                summary.unfinished.append(f"{len(accuracies)}/{length} epochs")
        return summary


def preferred(specs):
    """The source that figures draw from: the local runs if there are any of `specs`, otherwise the records."""
    local = Local()
    return local if any(local.histories(wanted) for wanted in specs) else Recorded()


PARTS = "train", "test", "validation"


def read_metrics(path):
    """The lines of a metrics.jsonl, one dictionary per epoch. A last line that was cut off does not count.

    Raises UserError for a line that is damaged or has other contents.
    """
    *lines, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    metrics = [
        read_epoch(line, number, path) for number, line in enumerate(lines if is_cut(rest) else [*lines, rest], 1)
    ]
    if len({tuple(part in epoch for part in PARTS) for epoch in metrics}) > 1:
        raise UserError(f"{display_path(path)}: line {len(metrics)}, or one before it, has other parts")
    return metrics


def is_cut(line):
    """Whether `line`, which does not end in a newline, is the beginning of a line of JSON."""
    try:
        json.loads(line.decode())
    except json.JSONDecodeError as error:
        return error.msg != "Extra data"
    except ValueError:
        pass
    return False


def read_epoch(line, number, path):
    where = f"{display_path(path)}: line {number}"
    epoch = read_line(line, where)
    if type(epoch.get("epoch")) is not int or epoch["epoch"] != number:
        raise UserError(f"{where}: is not that of epoch {number}")
    for part in PARTS:
        terms = epoch.get(part, {"acc": 0})
        if not isinstance(terms, dict) or not are_numbers(terms.values()) or ("acc" not in terms and part != "train"):
            raise UserError(f"{where}: {part}: must have numbers, and an accuracy")
    if not are_numbers([epoch.get(name, 0) for name in ("seconds", "queries")]):
        raise UserError(f"{where}: seconds and queries must be numbers")
    return epoch


def are_numbers(values):
    return all(type(value) in (int, float) for value in values)


def columns(metrics):
    """{"train": {term: values per epoch}, "test": …} of the lines of a metrics.jsonl."""
    return {
        part: {term: [epoch[part].get(term) for epoch in metrics] for term in metrics[0].get(part, {})}
        for part in ("train", "test")
    }


def file_of(experiment):
    """The file that records of `experiment` belong to: that of its first folder below experiments/."""
    parts = Path(experiment).parts
    if len(parts) < 3 or parts[0] != "experiments":
        raise UserError(f"{experiment}: only experiments below experiments/ have records")
    return from_root(f"results/{parts[1]}.jsonl")


def records_beside(experiment):
    """{spec without seed: [record, …]} of the file that records of `experiment` belong to."""
    try:
        path = file_of(experiment)
    except UserError:
        return {}
    return records_in(path) if path.is_file() else {}


def records_in(path):
    """{spec without seed: [record, …]} of a file in results/. Not to be modified."""
    return read_records(path, version(path))


@functools.cache
def read_records(path, version):
    """version: anything that changes when the file does."""
    found = {}
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        where = f"{display_path(path)}: line {number} is not a record"
        record = read_line(line, where)
        try:
            check_record(record)
            found.setdefault(spec.from_json(record).any_seed, []).append(record)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, UserError) as error:
            raise UserError(f"{where}: {error}") from None
    return found


def check_record(record):
    """Raises an error unless `record` has one number, or null, per epoch for each term, and an accuracy."""
    lengths = {len(values) for part in ("train", "test") for values in record[part].values()}
    terms = [x for part in ("train", "test") for values in record[part].values() for x in values if x is not None]
    if not are_numbers([*terms, *record["test"]["acc"], record["test"]["acc"][-1], record.get("planned_epochs", 0)]):
        raise ValueError("its metrics must be numbers")
    if len(lengths) != 1:
        raise ValueError("its metrics differ in length")
