"""Accuracy and losses over the epochs of some runs."""

import os
from pathlib import Path

import numpy as np

from study.figures import style
from study.ledger import preferred
from training import spec
from utils.errors import UserError
from utils.paths import display_path, from_root

NAMES = {
    ("test", "acc"): "test accuracy (%)",
    ("test", "loss"): "test cross-entropy",
    ("train", "loss"): "training loss",
    ("train", "ce"): "training cross-entropy",
}


def curves(folders, labels=None):
    """Draw a panel for each logged quantity with a line for each experiment: mean ± standard deviation over seeds.

    folders: experiments, or runs with changed keys. Each line includes all seeds. The numbers are those of local runs
    if there are any, and of records otherwise. labels: names of the lines; default: the folders, relative to their
    common parent.
    """
    runs = list(dict.fromkeys(find_run(folder) for folder in folders))
    labels = labels or short_names([Path(run.folder) for run in runs])
    if len(labels) != len(runs):
        raise UserError(f"--labels: {len(labels)} labels for {len(runs)} experiments (all seeds count as one)")
    source = preferred(runs)
    histories = [read_history(run, source.histories(run)) for run in runs]
    quantities = list(dict.fromkeys(quantity for history in histories for quantity in history))
    quantities.sort(key=lambda quantity: quantity[0] != "test")

    count = len(quantities)
    figure, axes = style.panels(count, 3 if count > 4 else min(2, count), 1.65)
    for quantity, ax in zip(quantities, axes, strict=True):
        logged = {index: history[quantity] for index, history in enumerate(histories) if quantity in history}
        for index, values in logged.items():
            draw_line(ax, values, style.look(index), index / len(histories))
        if quantity[1].startswith("acc"):
            limit(ax, list(logged.values()))
        style.name(ax, NAMES.get(quantity) or " ".join(quantity).replace("train ", "training "))
        ax.xaxis.get_major_locator().set_params(integer=True)
    style.name_horizontal(axes, "epoch")
    style.legend(figure, [axes[0].plot([], [], **style.look(index))[0] for index in range(len(runs))], labels)
    return figure


def draw_line(axes, values, look, offset):
    """Draw the mean of `values` (seeds, epochs), with a band of ± one standard deviation.

    offset: shift of the markers, as a part of their spacing.
    """
    epochs, middle = np.arange(1, values.shape[1] + 1), values.mean(0)
    every = max(1, len(epochs) // 6)
    axes.plot(epochs, middle, **look, markevery=(int(offset * every), every))
    if len(values) > 1:
        style.band(axes, epochs, middle, deviation(values), look["color"])


def limit(axes, accuracies):
    """Limit the axis so that low accuracies at the start of training do not compress the rest of the panel."""
    late = [values[:, values.shape[1] // 2 :] for values in accuracies]
    edges = [values.mean(0) + sign * deviation(values) for values in late for sign in (-1, 1)]
    lowest, highest = min(map(np.min, edges)), max(map(np.max, [*edges, *(values.mean(0) for values in accuracies)]))
    low = lowest - max(2, highest - lowest)
    if low > axes.get_ylim()[0]:
        axes.set_ylim(low, highest + 0.06 * (highest - low))


def deviation(values):
    """The standard deviation over seeds of `values` (seeds, epochs); 0 for a single seed."""
    return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def find_run(folder):
    """The Spec of a run folder without its seed. Raises UserError if there is no such folder."""
    path = Path(os.path.abspath(folder))
    path = path if (path / "params.json").is_file() else from_root(folder)
    if not (path / "params.json").is_file():
        raise UserError(f"{folder}: there is no such run; a run is a folder with a params.json")
    return spec.of_folder(display_path(path)).any_seed


def short_names(folders):
    """The folders relative to their common parent."""
    common = os.path.commonpath([folder.parent for folder in folders])
    return [os.path.relpath(folder, common) for folder in folders]


def read_history(run, histories):
    """{("train" or "test", term): values (seeds, epochs)} up to the last epoch that all seeds have finished.

    histories: {seed: {"train" or "test": {term: values per epoch}}}. Raises UserError if there are none.
    """
    if not histories:
        if run.raw.get("validation"):
            raise UserError(f"{run.folder}: has validation images, and curves are drawn for test images only")
        raise UserError(f"{run.folder}: no metrics yet; they are written after each epoch")
    lengths = {seed: len(history["test"]["acc"]) for seed, history in histories.items()}
    shortest = min(lengths, key=lengths.get)
    if lengths[shortest] < max(lengths.values()):
        print(f"{run.folder}: only {lengths[shortest]} epochs are drawn, because seed {shortest} has no more yet")
    first = next(iter(histories.values()))
    return {
        (part, term): np.array([history[part][term][: lengths[shortest]] for history in histories.values()])
        for part in ("test", "train")
        for term in first[part]
    }
