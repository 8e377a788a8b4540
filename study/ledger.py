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
from utils.paths import display_path, from_root, read_json, version

SCORED = ("test", "validation")  # images on which a run is scored in every epoch
PARTS = ("train", *SCORED)


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

    def histories(self, wanted, part="test"):
        """{seed: {"train" or `part`: {term: values per epoch}}} of the runs of the Spec `wanted`, whatever its seed.

        part: "test" or "validation". Runs that were not scored on these images in every epoch are left out.
        """
        records = records_beside(wanted.experiment).get(wanted.any_seed, [])
        return {record["seed"]: record for record in sorted(records, key=lambda x: x["seed"]) if part in record}

    def summary(self, wanted, part="test"):
        """The Summary of the runs of the Spec `wanted`, whatever its seed. part: as in `histories`."""
        summary = Summary()
        for seed, record in self.histories(wanted, part).items():
            accuracies = record[part]["acc"]
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

    def histories(self, wanted, part="test"):
        """As `Recorded.histories`, of all runs that have finished an epoch."""
        return {
            seed: columns(metrics)
            for seed, folder in self.folders(wanted).items()
            if (metrics := read_metrics(folder / "metrics.jsonl")) and part in metrics[0]
        }

    def summary(self, wanted, part="test"):
        """The Summary of the runs of the Spec `wanted`, whatever its seed. part: as in `histories`."""
        summary = Summary()
        for seed, folder in self.folders(wanted).items():
            accuracies = [epoch[part]["acc"] for epoch in read_metrics(folder / "metrics.jsonl") if part in epoch]
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
    """{"train": {term: values per epoch}, "test" or "validation": …} of the lines of a metrics.jsonl."""
    return {
        part: {term: [epoch[part].get(term) for epoch in metrics] for term in metrics[0][part]}
        for part in PARTS
        if part in metrics[0]
    }


def scored_part(found):
    """The images on which a record, or a line of a metrics.jsonl, has accuracies: "test" or "validation"."""
    return next(part for part in SCORED if part in found)


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
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, StopIteration, UserError) as error:
            raise UserError(f"{where}: {error}") from None
    return found


def check_record(record):
    """Raises an error unless `record` has one number, or null, per epoch for each term, and an accuracy."""
    columns = [values for part in PARTS for values in record.get(part, {}).values()]
    accuracies = record[scored_part(record)]["acc"]
    terms = [value for values in columns for value in values if value is not None]
    if not are_numbers([*terms, *accuracies, accuracies[-1], record.get("planned_epochs", 0)]):
        raise ValueError("its metrics must be numbers")
    if len({len(values) for values in columns}) != 1:
        raise ValueError("its metrics differ in length")
