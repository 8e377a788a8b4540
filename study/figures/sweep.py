"""Accuracy as a function of the value of a key: the sweeps (ablations) of experiments/tables.json."""

import itertools
import math
import statistics
from collections import Counter
from dataclasses import dataclass

import numpy as np

from study.entries import baseline
from study.figures import style
from study.ledger import preferred
from study.tables import find_entry
from study.targets import load_table
from training import spec
from training.spec import Spec
from utils.errors import UserError

KEYS = {
    "weight": "weight ω of the nasty teacher",
    "temperature": "temperature τ$_s$ of the student",
    "alpha": "weight α of the distillation term",
    "subset_percent": "share of the training images",
}
MOST_LINES = 6  # in one panel
BASELINE = "student baseline"
DASHED = {"linestyle": (0, (4, 2)), "linewidth": 0.9}


@dataclass
class Line:
    """A row of a sweep.

    student: identifies the student: the Spec of its baseline, or of the row's experiment if there is no baseline.
    title: the first words of the row's name, which all rows of the same student share. role: the other words.
    accuracies: {value: accuracies of all seeds}. alone: accuracies of the baseline.
    """

    name: str
    student: Spec
    title: str
    role: str
    accuracies: dict
    alone: list

    @property
    def means(self):
        return np.array([statistics.mean(values) for values in self.accuracies.values()])

    @property
    def deviations(self):
        """Standard deviations over seeds. They are NaN for a single seed, and NaN is not drawn."""
        return np.array([statistics.stdev(v) if len(v) > 1 else math.nan for v in self.accuracies.values()])


def sweep(target):
    """Draw the best accuracy over the values of a key, with a line for each row of `target`.

    Error bars are standard deviations over seeds. Dashed lines show the student without a teacher. If there are many
    rows, each student has its own panel. Values with a missing or unfinished run are printed.
    """
    data = find_entry(target, "sweep")
    lines = [line for line in read_lines(target, data) if line.accuracies]
    if not lines:
        raise UserError(f"{target}: no run has finished; train the runs with: python reproduce.py {target}")
    x = positions(data["values"])
    draw = one_panel if len(lines) <= MOST_LINES else panels
    figure, axes = draw(lines, x, f"{data.get('part', 'test')} accuracy (%)")
    for ax in axes:
        ax.set_xticks(list(x.values()), [f"{value:g}" if is_number(value) else str(value) for value in x])
    style.name_horizontal(axes, KEYS.get(data["key"], data["key"]))
    return figure


def read_lines(target, entry):
    """A Line for each row, with the accuracies of its finished runs. Prints values with a missing or unfinished run."""
    rows, part = load_table(target).rows, entry.get("part", "test")
    source = preferred([cell.spec for _, cells in rows for cell in cells], part)
    runs = [spec.make(cells[0].spec.experiment) for _, cells in rows]
    students = [(baseline(run) or run) if "teacher_resume" in run.raw else run for run in runs]
    lines = []
    for (name, cells), run, student, (title, role) in zip(
        rows, runs, students, split_names(rows, students), strict=True
    ):
        summaries = {value: source.summary(cell.spec, part) for value, cell in zip(entry["values"], cells, strict=True)}
        accuracies = {value: list(summary.best.values()) for value, summary in summaries.items() if summary.best}
        missing = [
            f"{value} ({', '.join(summary.unfinished) or 'not yet run'})"
            for value, summary in summaries.items()
            if summary.unfinished or not summary.best
        ]
        if accuracies and missing:
            print(f"missing in {name}: {entry['key']} {', '.join(missing)}")
        alone = [] if student == run else list(source.summary(student, part).best.values())
        lines.append(Line(name, student, title, role, accuracies, alone))
    return lines


def split_names(rows, students):
    """Yield (title, role) of each row.

    title: the first words of the row's name, which are the same in all rows of the student. role: the other words.
    """
    words = [name.replace(",", "").split() for name, _ in rows]
    for name, student in zip(words, students, strict=True):
        siblings = [other for other, its_student in zip(words, students, strict=True) if its_student == student]
        shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*siblings, strict=False)))
        yield " ".join(name[:shared]), " ".join(name[shared:])


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def positions(values):
    """{value: position on the horizontal axis}.

    Numbers that are nearly evenly spaced have a linear axis, others a logarithmic one with 0 at the left. If there are
    values below 0, or other values than numbers, the position is the index.
    """
    if not all(map(is_number, values)) or min(values) < 0:
        return {value: index for index, value in enumerate(values)}
    steps = np.diff(sorted(values))
    if len(steps) == 0 or steps.max() < 3 * steps.min():
        return {value: value for value in values}
    logarithms = {value: math.log(value) for value in values if value}
    low, high = min(logarithms.values()), max(logarithms.values())
    return {value: logarithms.get(value, low - 0.2 * (high - low)) for value in values}


def one_panel(lines, x, label):
    """Draw all lines in one panel, each with its name at its right end: (figure, axes). x: from `positions`."""
    figure, [ax] = style.panels(1, 1, 2.6)
    looks = [style.look(index) for index in range(len(lines))]
    draw_lines(ax, lines, looks, x)
    style.name(ax, label)
    if any(line.alone for line in lines):
        dashed = ax.plot([], [], color=style.GREY, **DASHED)
        ax.legend(dashed, [BASELINE], loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    low, high = ax.get_ylim()
    ends = [(x[list(line.accuracies)[-1]], line.means[-1]) for line in lines]
    heights = style.apart([height for _, height in ends], 0.065 * (high - low))
    for line, look, end, height in zip(lines, looks, ends, heights, strict=True):
        arrow = {"arrowstyle": "-", "color": look["color"], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
        place = {"xytext": (1.03, height), "textcoords": ax.get_yaxis_transform(), "annotation_clip": False}
        ax.annotate(line.name, end, **place, arrowprops=arrow, color=look["color"], va="center")
    return figure, [ax]


def panels(lines, x, label):
    """Draw a panel for each student, with the same style for lines of the same role: (figure, axes)."""
    students = list(dict.fromkeys(line.student for line in lines))
    roles = list(dict.fromkeys(line.role for line in sorted(lines, key=lambda line: not line.alone)))
    looks = {role: style.look(index) for index, role in enumerate(roles)}
    figure, axes = style.panels(len(students), min(2, len(students)), 1.5)
    for student, ax in zip(students, axes, strict=True):
        lines_of_student = [line for line in lines if line.student == student]
        draw_lines(ax, lines_of_student, [looks[line.role] for line in lines_of_student], x)
        style.name(ax, lines_of_student[0].title)
    handles = [axes[0].plot([], [], **look)[0] for look in looks.values()]
    handles += axes[0].plot([], [], color=style.GREY, **DASHED)
    style.legend(figure, handles, [*roles, BASELINE])
    figure.supylabel(label)
    return figure, axes


def draw_lines(axes, lines, looks, x):
    """Draw lines with error bars over seeds. A baseline that several lines share is grey."""
    drawn = Counter(line.student for line in lines)
    for line, look in zip(lines, looks, strict=True):
        xs = [x[value] for value in line.accuracies]
        axes.plot(xs, line.means, **look)
        axes.errorbar(xs, line.means, line.deviations, fmt="none", ecolor=look["color"], elinewidth=0.9, capsize=2)
        if line.alone:
            colour = look["color"] if drawn[line.student] == 1 else style.GREY
            axes.axhline(statistics.mean(line.alone), color=colour, **DASHED, zorder=1)
    axes.margins(x=0.04)
