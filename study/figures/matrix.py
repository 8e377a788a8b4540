"""A heat map of a matrix of experiments/tables.json: defences × attacks."""

import numpy as np

from study.entries import read_matrix, strongest
from study.figures import style
from study.formats import signed
from study.ledger import preferred
from study.tables import find_entry
from study.targets import load_table
from utils.errors import UserError

# The colour map of −gain. Orange: the student gains; violet: the student loses. Colour-blind readers can tell these
# colours apart.
MAP = "PuOr"


def matrix(target):
    """Draw the gain of each student over the same student without a teacher, in points.

    A frame marks the strongest attack of a row. Cells of unfinished runs are empty. Raises UserError if there is no
    such matrix, or no finished run.
    """
    from matplotlib.colors import SymLogNorm

    find_entry(target, "matrix")
    data = load_table(target)
    source = preferred([cell.spec for _, (_, *attacks) in data.rows for cell in attacks])
    alone, yardstick, rows = read_matrix(data, source)
    gains = np.array([[entry["difference"] for entry in attacks] for _, attacks in rows], dtype=float)
    if np.isnan(gains).all():
        raise UserError(f"{target}: no run has finished; train the runs with: python reproduce.py {target}")
    names = []
    for (name, (cell, *_)), (teacher, _) in zip(data.rows, rows, strict=True):
        names.append(name if teacher[cell.epoch] is None else f"{name} ({teacher[cell.epoch]:.1f})")
    figure, [[ax]] = style.grid(1, 1, 0.9 + 0.26 * len(names))
    limit = max(1.0, np.nanmax(np.abs(gains)))
    norm = SymLogNorm(linthresh=1, vmin=-limit, vmax=limit)  # small gains stay visible beside a very large loss
    image = ax.imshow(-gains, cmap=MAP, norm=norm, aspect="auto")
    ax.set_xticks(range(len(data.columns) - 1), data.columns[1:])
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    for row, (values, best) in enumerate(zip(gains, strongest(data, rows), strict=True)):
        write(ax, row, values, dark=np.abs(norm(values) - 0.5) > 0.3)
        if best:
            frame(ax, row, data.columns.index(best[0]) - 1)
    bar = figure.colorbar(image, ax=ax, pad=0.02)
    marks = [mark for mark in (-30, -10, -3, -1, 0, 1, 3, 10, 30) if abs(mark) <= limit]
    bar.set_ticks(
        [-mark for mark in marks], labels=[typeset(f"{mark:+d}") if mark else "0" for mark in marks], minor=False
    )
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.invert_yaxis()
    bar.set_label("student minus student alone")
    gain = yardstick["difference"]
    smoothed = "" if gain is None else f"; label smoothing: {typeset(signed(gain))}"
    shown = f"Student alone: {alone['best']:.2f}{smoothed}"
    ax.set_xlabel(f"teacher (its accuracy) × attack, the strongest framed\n{shown}")
    return figure


def typeset(number):
    """Replace the hyphen of `number`, a string, by a minus sign."""
    return number.replace("-", "−")


def write(ax, row, values, dark):
    """Write the numbers of a row, in white on dark cells."""
    for column, value in enumerate(values):
        if not np.isnan(value):
            colour = "white" if dark[column] else "black"
            ax.text(column, row, typeset(signed(value)), ha="center", va="center", color=colour)


def frame(ax, row, column):
    """Draw a frame around a cell."""
    from matplotlib.patches import Rectangle

    corner = column - 0.5, row - 0.5
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, linewidth=1.6, edgecolor="black", clip_on=False))
