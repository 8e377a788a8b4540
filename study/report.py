"""The results of a target in any format, as results.py prints them.

A table shows published numbers, records and local runs. A benchmark has its leaderboard.
"""

import json
import os
from pathlib import Path

from study import formats, tables
from study.cards import read_cards
from study.cards import show as show_cards
from study.entries import entry_of, flat, flat_matrix, read_matrix, strongest
from study.leaderboard import make_markdown
from study.ledger import Local, Recorded
from study.matrices import Matrix
from study.page import make_html
from study.targets import NO_MATRIX, is_benchmark, is_folder, load_table_to_print, specs_of
from utils.errors import UserError
from utils.paths import ROOT

ABOUT = (
    "{} accuracy in %. paper: published. here: the records of this repository. yours: run folders on this machine.\n"
    "In brackets: difference to the same student without a teacher, over the seeds that both have."
)


def render(target, style, output=None, **selection):
    """The results of a target as a string: a table, or the leaderboard of a benchmark.

    style: one of `formats.FORMATS`, or "html" for a benchmark. output: the file to write, to which links are relative.
    selection: see `targets.load_table`; for a benchmark, `columns` is the argument `attacks` of `read_cards`, and
    `common` must be empty.
    """
    if not is_benchmark(target):
        if style == "html":
            raise UserError(f"--format html: {target} is not a benchmark")
        return report(target, style, **selection)
    if selection.get("common"):
        raise UserError(f"--set: {target} is a benchmark, whose cards have no changed keys")
    cards = read_cards(target, selection.get("columns"), selection.get("rows"))
    root = os.path.relpath(ROOT, Path(output or "page").absolute().parent)
    root = "" if root == "." else f"{root}/"
    if style == "html":
        return make_html(cards, root)
    if style == "markdown":
        return make_markdown(cards, root)
    if style == "json":
        return json.dumps(cards, indent=4, ensure_ascii=False)
    if style not in formats.STYLES:
        raise UserError(f"--format {style}: a benchmark has the formats {', '.join(formats.STYLES)}, json and html")
    return show_cards(cards, formats.STYLES[style])


def report(target, style="text", sources=None, with_changed=True, **selection):
    """The results of a target, a folder or a name in experiments/tables.json, as a string.

    sources: objects of ledger.py; default: the records and the local runs. with_changed: whether the table of a folder
    also lists runs with changed keys. selection: `common`, `rows` and `columns`; see `targets.load_table`.
    """
    sources, common = sources or (Recorded(), Local()), selection.get("common")
    if is_folder(target):
        if selection.get("rows") or selection.get("columns"):
            raise UserError(NO_MATRIX.format(target))
        return report_folder(target, style, common, sources, with_changed)
    table = load_table_to_print(target, **selection)
    make = report_matrix if isinstance(table, Matrix) else report_table
    return make(table, style, common, sources)


def report_table(table, style, common, sources):
    """A table with the rows and columns of the paper, as a string. A row has lines for the paper and each source."""
    grid = [[[cell and entry_of(cell, source) for cell in cells] for source in sources] for _, cells in table.rows]
    if style not in formats.STYLES:
        return formats.dump(flat(table, grid), style)
    lines = []
    for (name, cells), by_source in zip(table.rows, grid, strict=True):
        block = []
        if any(cell and cell.published is not None for cell in cells):
            block.append(["paper", *(entry and formats.show_published(entry) for entry in by_source[0])])
        for source, entries in zip(sources, by_source, strict=True):
            if any(entry and has_begun(entry) for entry in entries):
                last = (entry and formats.plus_minus(entry["last"], entry["last_sd"]) for entry in entries)
                block.append([f"{source.name} best", *(entry and formats.show_accuracy(entry) for entry in entries)])
                block.append(["last", *last])
        block = block or [["not yet run", *(cell and "–" for cell in cells)]]
        lines += [[name if i == 0 else "", *line] for i, line in enumerate(block)]
    parts = " and ".join(dict.fromkeys(cell.part for cell in table.cells()))
    about, headers = ABOUT.format(parts.capitalize()), ["", "", *table.columns]
    text = formats.titled(table, about, common, lines, headers, style)
    sentences = [formats.conclude(table, source.name, [rows[i] for rows in grid]) for i, source in enumerate(sources)]
    return "\n\n".join([text, *filter(None, sentences)]) if style != "latex" else text


def has_begun(entry):
    """Whether a run of an entry has finished an epoch."""
    return bool(entry["n"] or entry["unfinished"])


def report_matrix(matrix, style, common, sources):
    """A matrix as a string: for each defence, the gains of all attacks over the student alone, and the strongest."""
    by_source = [read_matrix(matrix, source) for source in sources]
    if style not in formats.STYLES:
        return formats.dump([entry for numbers in by_source for entry in flat_matrix(matrix, *numbers)], style)
    lines = []
    about = [
        "Test accuracy in %. Teacher: accuracy of the epoch that its students load. Attacks: best accuracy of the",
        "student minus best accuracy of the student alone with the same seed.",
    ]
    for i, (name, (cell, *_)) in enumerate(matrix.rows):
        above = len(lines)
        for source, (_, yardstick, rows) in zip(sources, by_source, strict=True):
            teacher, attacks = rows[i]
            if not any(map(has_begun, (teacher, *attacks))):
                continue
            attack, best = strongest(matrix, rows)[i] or ("", None)
            comparable = best and best["difference_n"] == yardstick["difference_n"]
            over_yardstick = best["difference"] - yardstick["difference"] if comparable else None
            accuracy = formats.show_accuracy(teacher, cell.epoch)
            lines.append([name, source.name, accuracy, *map(formats.show_gain, attacks)])
            lines[-1] += [f"{attack} {formats.show_gain(best)}" if best else "", formats.signed(over_yardstick)]
        if len(lines) == above:
            lines.append([name, "not yet run", *("–" for _ in matrix.columns), "", ""])
    for source, (alone, yardstick, _) in zip(sources, by_source, strict=True):
        if alone["n"]:
            about.append(f"{source.name}: {without_teacher(matrix, source, alone, yardstick)}.")
    headers = ["defence", "", *matrix.columns, "strongest attack", "minus yardstick"]
    return formats.titled(matrix, "\n".join(about), common, lines, headers, style)


def without_teacher(matrix, source, alone, yardstick):
    """The accuracies of the students of a matrix that have no teacher, as text."""
    parts = [f"alone {formats.show_accuracy(alone)}"]
    parts.append(f"yardstick ({changes(matrix.yardstick)}) {formats.show_accuracy(yardstick)}")
    if matrix.control:
        control = entry_of(matrix.control, source, matrix.alone.spec)
        parts.append(f"control of htc ({changes(matrix.control)}) {formats.show_accuracy(control)}")
    return "; ".join(parts)


def changes(cell):
    """The changed keys of a cell, as text."""
    return formats.listed(dict(cell.spec.changes))


def report_folder(folder, style, common, sources, with_changed):
    """A table of the runs of the experiments in `folder`, as a string. All seeds of a run are in one line."""
    numbers = tables.published()
    runs = {}
    for run in specs_of(folder, common=common):
        runs[run.any_seed] = None
        if with_changed and run.folder == run.experiment:
            changed = {other for source in sources for other in source.runs_of(run.experiment)}
            runs |= dict.fromkeys(sorted(changed, key=lambda other: other.folder))
    entries = []
    for run in runs:
        cell = tables.Cell(run, None if run.changes or run.teacher_changes else numbers.get(run.experiment))
        by_source = [entry_of(cell, source) for source in sources]
        entries += list(filter(has_begun, by_source)) or [by_source[0] | {"source": ""}]
    if style not in formats.STYLES:
        return formats.dump(entries, style)
    lines = [
        [
            entry["experiment"],
            entry["teacher"],
            entry["source"],
            formats.plus_minus(entry["best"], entry["best_sd"]) or entry["unfinished"] or "–",
            formats.plus_minus(entry["last"], entry["last_sd"]),
            formats.signed(entry["difference"]),
            formats.plus_minus(entry["published"]),
            entry["n"],
        ]
        for entry in entries
    ]
    headers = ["experiment", "teacher", "", "best acc", "last acc", "vs. alone", "paper", "runs"]
    return formats.tabulated(lines, headers, style)
