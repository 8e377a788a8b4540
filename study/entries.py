"""Entries: the accuracies of the cells of a table from one source, and their differences to a baseline.

A source is an object of ledger.py: the records, or the run folders on this machine. Here, an entry is a dictionary of
numbers. It is not an entry of experiments/tables.json.
"""

import dataclasses
from pathlib import Path

import model
from study import tables
from study.intervals import deviation, in_prediction_interval, mean
from study.protocol import DATA_FREE
from training import params, spec
from utils.paths import from_root

OF_TRAINING = {field.name for field in dataclasses.fields(params.Common)} - {"model_name", "method", "resume"}


def entry_of(cell, source, alone=None):
    """All numbers of a Cell from one source, as a flat dictionary. Accuracies are in percent, differences in points.

    alone: the Spec whose accuracy is subtracted for "difference"; default: for a student, its baseline.
    """
    summary = source.summary(cell.spec, cell.part)
    raw = cell.spec.raw
    teacher = raw.get("teacher_resume") or raw.get("adversarial_resume")  # a defended teacher has the latter
    if alone is None and "teacher_resume" in raw:
        alone = baseline(cell.spec)
    gains = summary.gains(source.summary(alone, cell.part)) if alone else []
    return {
        "experiment": cell.spec.folder.removeprefix("experiments/"),
        "source": source.name,
        "teacher": Path(teacher).parent.name if teacher else "",
        "n": len(summary.best),
        "best": mean(summary.best.values()),
        "best_sd": deviation(summary.best.values()),
        "last": mean(summary.last.values()),
        "last_sd": deviation(summary.last.values()),
        "difference": mean(gains),
        "difference_sd": deviation(gains),
        "difference_n": len(gains),
        "published": cell.published,
        "published_difference": published_difference(cell, alone),
        "published_inside": in_prediction_interval(cell.published, list(summary.best.values())),
        "unfinished": ", ".join(summary.unfinished),
    }


def published_difference(cell, alone):
    """The published accuracy of a cell minus that of the Spec `alone`; None if one of them is unknown."""
    if cell.published is None or alone is None:
        return None
    other = tables.published().get(alone.experiment)
    return None if other is None else cell.published - other


def read_matrix(matrix, source):
    """Return (alone, yardstick, rows): the entries of a Matrix from one source.

    alone, yardstick: entries of the students without a teacher. rows: (entry of the teacher, [entry of the student of
    each attack]) for each defence.
    """
    alone = matrix.alone.spec
    rows = [
        (entry_of(teacher, source), [entry_of(cell, source, alone) for cell in attacks])
        for _, (teacher, *attacks) in matrix.rows
    ]
    return entry_of(matrix.alone, source), entry_of(matrix.yardstick, source, alone), rows


def strongest(matrix, rows):
    """A list with (name, entry) of the attack whose student has the largest difference, for each row of `read_matrix`.

    The item is None if the attacks of the row have different numbers of seeds, or if one has no finished run. An attack
    in `matrix.new` without a finished run in any row is left out.
    """
    columns = [[attacks[i] for _, attacks in rows] for i in range(len(matrix.columns) - 1)]
    considered = {
        name: column
        for name, column in zip(matrix.columns[1:], columns, strict=True)
        if name not in matrix.new or any(entry["difference_n"] for entry in column)
    }
    return [strongest_of({name: column[i] for name, column in considered.items()}) for i in range(len(rows))]


def strongest_of(attacks):
    """The item of {attack: entry} with the largest difference; None if the numbers of seeds differ, or are 0."""
    counts = {entry["difference_n"] for entry in attacks.values()}
    if len(counts) != 1 or 0 in counts:
        return None
    return max(attacks.items(), key=lambda item: item[1]["difference"])


def flat(table, entries_of_rows):
    """The entries of a table as one list of dictionaries, each with its row and column.

    entries_of_rows: for each row, a list with one list of entries for each source.
    """
    return [
        {"row": name, "column": column} | entry
        for (name, _), by_source in zip(table.rows, entries_of_rows, strict=True)
        for entries in by_source
        for column, entry in zip(table.columns, entries, strict=True)
        if entry
    ]


def flat_matrix(matrix, alone, yardstick, rows):
    """Like `flat`, for the entries that `read_matrix` returns."""
    controls = [{"row": "alone", "column": "student"} | alone, {"row": "yardstick", "column": "student"} | yardstick]
    return controls + flat(matrix, [[[teacher, *attacks]] for teacher, attacks in rows])


def baseline(student):
    """The Spec of the baseline of the Spec `student`: the same network, trained without a teacher. None if none exists.

    The baseline is an experiment in the folder baseline/ beside the parent folder of the student: the one with the same
    name, or else the first, whose network is that of the student. If there is none, it is the one with the same name
    with the changed network of the student. The returned Spec has the common changes, the seed and the changed keys of
    the student's training. Of a student without images, only the share of training images is taken.
    """
    path, raw, changes, common = Path(student.experiment), student.raw, dict(student.changes), dict(student.common)
    options = {"model_name": None} | model.options(raw["model_name"])
    names = {"subset_percent"} if raw.get("method") in DATA_FREE else OF_TRAINING
    of_training = {name: value for name, value in changes.items() if name in names}
    of_network = {name: value for name, value in changes.items() if name in options}
    folder = path.parent.parent / "baseline"
    found = (str(folder / file.parent.name) for file in sorted(from_root(folder).glob("*/params.json")))
    namesake = str(folder / path.name)
    experiments = sorted(filter(spec.is_definition, found), key=lambda experiment: experiment != namesake)
    tried = [(experiment, of_training) for experiment in experiments]
    tried += [(namesake, of_training | of_network)] * (namesake in experiments)
    for experiment, changed in tried:
        other = spec.definition(experiment) | common | changed
        if all(other.get(key, default) == raw.get(key, default) for key, default in options.items()):
            return spec.make(experiment, changed, common=common, seed=student.seed)
    return None
