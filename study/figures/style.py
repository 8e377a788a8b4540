"""The style of figures, and the function that saves figures. matplotlib is imported only when a figure is drawn."""

import contextlib
import os
from pathlib import Path

from utils.errors import UserError

# The colours of Okabe and Ito, which colour-blind readers can tell apart. Yellow is left out: it is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
GREY = "#666666"

WIDTH = 5.5  # inches: the text width of ICLR, so that 8 pt in a figure are 8 pt in print
DPI = 220  # resolution of the PNG file

SHEET = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so the files are the same on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#333333",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # embedded TrueType, which publishers require
    "image.interpolation": "nearest",
}


@contextlib.contextmanager
def sheet():
    """A context in which figures are drawn and saved in the style SHEET. Raises UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("figures need matplotlib: pip install matplotlib") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignores the user's matplotlibrc
        matplotlib.rcParams.update(SHEET)
        yield


def grid(rows, columns, height, **options):
    """(figure, array (rows, columns) of axes) of width WIDTH. height: in inches. options: of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def panels(count, columns, height):
    """(figure, list of `count` axes, row by row), which share their horizontal axis. height: of a row, in inches."""
    rows = -(-count // columns)
    figure, axes = grid(rows, columns, 0.5 + height * rows, sharex=True)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def name_horizontal(axes, quantity):
    """Label the horizontal axis below the lowest panel of each column."""
    lowest = {ax.get_subplotspec().colspan.start: ax for ax in axes}
    for ax in lowest.values():
        ax.set_xlabel(quantity)
        ax.tick_params(labelbottom=True)
        last_row = ax.get_subplotspec().is_last_row()
        ax.xaxis.set_in_layout(last_row)  # otherwise the layout reserves space for the hidden labels


def look(index):
    """Keyword arguments of `Axes.plot`: colour, marker and line style of line number `index`."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def band(axes, x, middle, spread, colour):
    """Shade `middle` ± `spread`."""
    axes.fill_between(x, middle - spread, middle + spread, color=colour, alpha=0.18, linewidth=0)


def name(axes, quantity):
    """Write the name of the vertical axis above the axis, in horizontal text, and add horizontal grid lines."""
    axes.set_title(quantity, loc="left")
    axes.grid(axis="y")


def legend(figure, handles, labels):
    """One legend for all axes, above them, in as many columns as fit."""
    handle = 7  # width of a line sample and its margins, in characters; 84 characters fit into a row
    fits_one_row = sum(map(len, labels)) + handle * len(labels) <= 84
    columns = len(labels) if fits_one_row else max(1, 84 // (max(map(len, labels)) + handle))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=2.6, borderpad=0)


def apart(heights, gap):
    """Move `heights` as little as possible so that they are at least `gap` apart, for labels that do not overlap."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks = []  # [sum of (height - rank * gap), count] for each group of labels that touch; a group shares a mean
    for rank, index in enumerate(order):
        blocks.append([heights[index] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    bases = [total / count for total, count in blocks for _ in range(count)]
    placed = {index: base + rank * gap for rank, (index, base) in enumerate(zip(order, bases, strict=True))}
    return [placed[index] for index in range(len(heights))]


def save(figure, output, default):
    """Write the figure as PNG and PDF, and return the paths. The files are reproducible: they contain no date.

    output: path of the files, with or without suffix, or a folder; the files are then named `default`. Raises UserError
    if a file cannot be written.
    """
    path = Path(output)
    if output.endswith(("/", os.sep)) or path.is_dir():
        path = path / default
    elif path.suffix.lower() in (".png", ".pdf"):
        path = path.with_suffix("")
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    try:
        path.parent.mkdir(exist_ok=True, parents=True)
        figure.savefig(files[0], dpi=DPI, metadata={"Software": None})
        figure.savefig(files[1], dpi=DPI, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return files
