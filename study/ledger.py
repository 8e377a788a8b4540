"""Accuracies of finished runs, from two sources that are never averaged together.

`Recorded` reads the records in results/, which are part of the repository. `Local` reads the run folders on this
machine. Both return a Summary of all seeds of a run.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

from study.progress import PARTS, are_numbers, columns, read_metrics, scored_part
from training import spec
from utils.digest import read_line
from utils.errors import UserError
from utils.paths import display_path, from_root, read_json, version


@dataclass
class Summary:
    """The accuracies of the runs of a Spec, with all seeds.

    best, last: {seed: accuracy in percent} of the best and of the last epoch of each finished run.
    unfinished: "12/160 epochs" for each of the other runs.
    """

    best: dict = field(default_factory=dict)
    last: dict = field(default_factory=dict)
    unfinished: list = field(default_factory=list)

    def gains(self, other):
        """A list with the best accuracy minus that of another Summary, for each seed that both have."""
        return [accuracy - other.best[seed] for seed, accuracy in self.best.items() if seed in other.best]


class Recorded:
    """The records in results/."""

    name = "here"

    def runs_of(self, experiment):
        """The specs of all recorded runs of an experiment, without their seeds."""
        return [run for run in records_beside(experiment) if run.experiment == experiment]

    def histories(self, wanted, part="test"):
        """{seed: {"train" or `part`: {term: values per epoch}}} of the runs of the Spec `wanted` with any seed.

        part: "test" or "validation". Runs that were not scored on these images in every epoch are left out.
        """
        records = records_beside(wanted.experiment).get(wanted.any_seed, [])
        return {record["seed"]: record for record in sorted(records, key=lambda x: x["seed"]) if part in record}

    def summary(self, wanted, part="test"):
        """The Summary of the runs of the Spec `wanted` with any seed. part: as in `histories`."""
        summary = Summary()
        for seed, record in self.histories(wanted, part).items():
            accuracies = record[part]["acc"]
            if "planned_epochs" in record:  # a run that was stopped early
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
        """{seed: folder} of the runs of the Spec `wanted` with any seed."""
        return dict(sorted(self.runs_beside(wanted.experiment).get(wanted.any_seed, {}).items()))

    def runs_beside(self, experiment):
        """{spec without seed: {seed: folder}} of all run folders in the parent folder of `experiment`."""
        parent = from_root(experiment).parent
        if parent not in self.listed:
            self.listed[parent] = {}
            for path in sorted(parent.glob("*/params.json")):
                if not (path.with_name("metrics.jsonl").exists() or spec.is_definition(path.parent)):
                    continue  # a run with changed keys that has no results
                run = spec.of_folder(display_path(path.parent))
                self.listed[parent].setdefault(run.any_seed, {})[run.seed] = path.parent
        return self.listed[parent]

    def histories(self, wanted, part="test"):
        """Like `Recorded.histories`, for local runs that have finished an epoch."""
        return {
            seed: columns(metrics)
            for seed, folder in self.folders(wanted).items()
            if (metrics := read_metrics(folder / "metrics.jsonl")) and part in metrics[0]
        }

    def summary(self, wanted, part="test"):
        """The Summary of the runs of the Spec `wanted` with any seed. part: as in `histories`."""
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


def preferred(specs, part="test"):
    """The source of the numbers in figures: the local runs if there are any of `specs`, otherwise the records.

    part: as in `Recorded.histories`.
    """
    local = Local()
    return local if any(local.histories(wanted, part) for wanted in specs) else Recorded()


def records_file(experiment):
    """The file for the records of an experiment: results/A.jsonl for an experiment in experiments/A/.

    Raises UserError for an experiment elsewhere.
    """
    parts = Path(experiment).parts
    if len(parts) < 3 or parts[0] != "experiments":
        raise UserError(f"{experiment}: only experiments below experiments/ have records")
    return from_root(f"results/{parts[1]}.jsonl")


def records_beside(experiment):
    """{spec without seed: [record, …]} of the file for the records of `experiment`; {} if there is none."""
    try:
        path = records_file(experiment)
    except UserError:
        return {}
    return records_in(path) if path.is_file() else {}


def records_in(path):
    """{spec without seed: [record, …]} of a file in results/. Do not modify this dictionary: it is cached."""
    return read_records(path, version(path))


@functools.cache
def read_records(path, version):
    """Like `records_in`. version: a value that changes if the file changes; only a key of the cache."""
    records = {}
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        where = f"{display_path(path)}: line {number} is not a record"
        record = read_line(line, where)
        try:
            check_record(record)
            records.setdefault(spec.from_json(record).any_seed, []).append(record)
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration, UserError) as error:
            raise UserError(f"{where}: {error}") from None
    return records


def check_record(record):
    """Raise an error unless each term of `record` has one number, or null, per epoch, and each accuracy is a number."""
    series = [values for part in PARTS for values in record.get(part, {}).values()]
    accuracies = record[scored_part(record)]["acc"]
    terms = [value for values in series for value in values if value is not None]
    if not accuracies:
        raise ValueError("it has no epoch")
    if not are_numbers([*terms, *accuracies, record.get("planned_epochs", 0)]):
        raise ValueError("its metrics must be numbers")
    if len({len(values) for values in series}) != 1:
        raise ValueError("its metrics differ in length")
