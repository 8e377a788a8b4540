"""Accuracy and losses over the epochs of some runs."""

import os
from pathlib import Path

import numpy as np

from utils.checkpoint import shown
from utils.errors import UserError
from utils.figures import style
from utils.records import read_metrics, runs_of, split_seed

NAMES = {
    ("test", "acc"): "test accuracy (%)",
    ("test", "loss"): "test cross-entropy",
    ("train", "loss"): "training loss",
    ("train", "ce"): "training cross-entropy",
}


def curves(runs, labels=None):
    """A panel for every logged quantity, a line for every experiment: the mean of its seeds, ± standard deviation.

    runs: folders; one without ",seed=N" stands for all its seeds, beside it. labels: of the lines (default: folders).
    """
    groups = group(runs)
    labels = labels or short_names(list(groups))
    if len(labels) != len(groups):
        raise UserError(f"--labels: {len(labels)} labels for {len(groups)} experiments (their seeds count once)")
    histories = [read_group(*item) for item in groups.items()]
    panels = list(dict.fromkeys(quantity for history in histories for quantity in history))
    panels.sort(key=lambda panel: panel[0] != "test")

    figure, axes = style.panels(len(panels), 3 if len(panels) > 4 else min(2, len(panels)), 1.65)
    for panel, ax in zip(panels, axes, strict=True):
        logged = {index: history[panel] for index, history in enumerate(histories) if panel in history}
        for index, values in logged.items():
            draw(ax, values, style.look(index), index / len(histories))
        if panel[1].startswith("acc"):
            limit(ax, list(logged.values()))
        style.name(ax, NAMES.get(panel) or " ".join(panel).replace("train ", "training "))
        ax.xaxis.get_major_locator().set_params(integer=True)
    style.name_horizontal(axes, "epoch")
    style.legend(figure, [axes[0].plot([], [], **style.look(index))[0] for index in range(len(groups))], labels)
    return figure


def draw(axes, values, look, offset):
    """The mean line and the band of `values`, (seeds, epochs). offset: in [0, 1), moves the markers off the others'."""
    epochs, middle = np.arange(1, values.shape[1] + 1), values.mean(0)
    every = max(1, len(epochs) // 6)
    axes.plot(epochs, middle, **look, markevery=(int(offset * every), every))
    if len(values) > 1:
        style.band(axes, epochs, middle, deviation(values), look["color"])


def limit(axes, accuracies):
    """Cut off the start of training where it lies so far below all that comes that it would flatten the rest."""
    late = [values[:, values.shape[1] // 2 :] for values in accuracies]
    edges = [values.mean(0) + sign * deviation(values) for values in late for sign in (-1, 1)]
    lowest, highest = min(map(np.min, edges)), max(map(np.max, [*edges, *(values.mean(0) for values in accuracies)]))
    low = lowest - max(2, highest - lowest)
    if low > axes.get_ylim()[0]:
        axes.set_ylim(low, highest + 0.06 * (highest - low))


def deviation(values):
    """Over the seeds, the rows of `values`; of a single one 0."""
    return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def group(runs):
    """{experiment: its run folders} of folders, with all the seeds of those that name none."""
    groups = {}
    for run in runs:
        path = Path(os.path.abspath(run))
        experiment, seed = split_seed(path.name)
        found = runs_of(path) if seed < 0 else [path] if (path / "params.json").is_file() else []
        if not found:
            raise UserError(f"{shown(path)}: there is no such run, that is, no folder with a params.json")
        known = groups.setdefault(path.with_name(experiment), [])
        known += [folder for folder in found if folder not in known]
    return groups


def short_names(folders):
    """The folders without the parents that all have in common."""
    common = os.path.commonpath([folder.parent for folder in folders])
    return [os.path.relpath(folder, common) for folder in folders]


def read_group(experiment, folders):
    """{("train" or "test", term): values (seeds, epochs)} over the epochs that all its seeds have behind them."""
    logs = {folder: log for folder in folders if (log := read_metrics(folder / "metrics.jsonl"))}
    if not logs:
        raise UserError(f"{shown(experiment)}: no metrics yet; they are written at the end of each epoch")
    for folder in folders:
        if folder not in logs:
            print(f"{shown(folder)}: no metrics yet, left out")
    lengths = {folder: len(log) for folder, log in logs.items()}
    shortest = min(lengths, key=lengths.get)
    if lengths[shortest] < max(lengths.values()):
        print(f"{shown(experiment)}: {lengths[shortest]} epochs are drawn, as {shortest.name} has no more yet")
    drawn = [log[: lengths[shortest]] for log in logs.values()]
    quantities = [(part, term) for part in ("test", "train") for term in drawn[0][0][part]]
    return {
        (part, term): np.array([[record[part][term] for record in log] for log in drawn]) for part, term in quantities
    }
