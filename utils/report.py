"""Results as text, Markdown, LaTeX, CSV or JSON."""

import csv
import io
import json
from pathlib import Path

from tabulate import tabulate

from utils import plan as plans
from utils import tables
from utils.records import record, split_seed

STYLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
FORMATS = (*STYLES, "csv", "json")


def report(target, style="text", changes=None, with_changed=True):
    """The results of a target, a folder or a name in experiments/tables.json, as a string.

    changes: {key: value}, of the runs in which these are changed. with_changed: for a folder, of all runs with changed
    keys, "experiment,key=value". Those with other seeds always are.
    """
    if tables.is_folder(target):
        return report_folder(target, style, changes or {}, with_changed)
    table = tables.load_table(target)
    return (report_matrix if isinstance(table, tables.Matrix) else report_table)(table, style, changes or {})


def report_table(table, style, changes):
    """A target as the paper prints it, the paper's numbers below each row of ours, as a string."""
    rows, records = read_records(table, changes)
    if style not in STYLES:
        return dump(flat(table, rows, records), style)
    lines = []
    for row, entries in zip(rows, records, strict=True):
        lines.append([row, "best", *(entry and shown_best(entry) for entry in entries)])
        lines.append(["", "last", *(entry and shown(entry["last"], entry["last_sd"]) for entry in entries)])
        if any(entry and entry["published"] for entry in entries):
            lines.append(["", "paper", *(entry and shown_published(entry) for entry in entries)])
    about = "Test accuracy in %; in brackets: minus the same student without a teacher, over the seeds that both have."
    return titled(table, about, changes, draw(lines, ["", "", *table.columns], style), style)


def report_matrix(matrix, style, changes):
    """What each attack gains over the student alone, for each defence, and which one gains most, as a string."""
    alone, smoothed, rows = read_matrix(matrix, changes)
    if style not in STYLES:
        own = {"alone": alone, "yardstick": smoothed}.items()
        own = [{"row": name, "column": "student"} | entry for name, entry in own]
        names, records = [name for name, _ in matrix.rows], [[teacher, *attacks] for teacher, attacks in rows]
        return dump([*own, *flat(matrix, names, records)], style)
    lines = []
    for (name, (cell, *_)), (teacher, attacks) in zip(matrix.rows, rows, strict=True):
        attack, best = strongest(matrix, attacks) or ("", None)
        comparable = best and best["difference_n"] == smoothed["difference_n"]
        over = best["difference"] - smoothed["difference"] if comparable else None
        lines.append([name, shown_best(teacher, cell.epoch), *map(shown_gain, attacks)])
        lines[-1] += [f"{attack} {shown_gain(best)}" if best else "", signed(over)]
    about = (
        "Test accuracy in %: the teacher's, as its students have it; the students' best, minus that of the student"
        f" alone, {shown_best(alone)}, seed by seed."
        f"\nThe yardstick is the student alone with {listed(matrix.yardstick.changes)}, {shown_best(smoothed)}."
    )
    headers = ["defence", *matrix.columns, "strongest attack", "minus yardstick"]
    return titled(matrix, about, changes, draw(lines, headers, style), style)


def read_matrix(matrix, changes=None):
    """(record of the student alone, of the yardstick, for each row (the teacher's, [each attack's]))."""
    numbers, alone = tables.published(), matrix.alone.experiment

    def read(cell, alone=None):
        return record_of(cell, numbers, changes, alone)

    rows = [(read(teacher), [read(cell, alone) for cell in attacks]) for _, (teacher, *attacks) in matrix.rows]
    return read(matrix.alone), read(matrix.yardstick, alone), rows


def strongest(matrix, attacks):
    """(name, record) of the attack whose student gains most; None where one is missing, or a seed of one."""
    counts = {entry["difference_n"] for entry in attacks}
    if len(counts) > 1 or 0 in counts:
        return None
    return max(zip(matrix.columns[1:], attacks, strict=True), key=lambda pair: pair[1]["difference"])


def shown_gain(entry):
    """ "-1.48 ± 0.33": over the student alone."""
    if entry["difference"] is None:
        return entry["unfinished"] or "–"
    spread = entry["difference_sd"]
    return signed(entry["difference"]) + (f" ± {spread:.2f}" if spread is not None else "")


def read_records(table, changes):
    """(names of the rows, for each row a record or None a column)."""
    numbers = tables.published()
    records = [[cell and record_of(cell, numbers, changes) for cell in cells] for _, cells in table.rows]
    return [name for name, _ in table.rows], records


def record_of(cell, numbers, changes, alone=None):
    plain = tables.run_of(cell)
    return record(tables.run_of(cell, changes) if changes else plain, numbers, plain, alone, changes)


def flat(table, rows, records):
    """The records of a table, one after the other, each with its row and column."""
    return [
        {"row": row, "column": column} | entry
        for row, entries in zip(rows, records, strict=True)
        for column, entry in zip(table.columns, entries, strict=True)
        if entry
    ]


def titled(table, about, changes, drawn, style):
    title = f"{table.title} ({table.source})\n{about}"
    if changes:
        title += f"\nIn all runs {listed(changes)}."
    if style == "latex":
        title = "% " + title.replace("\n", "\n% ")
    return f"{title}\n\n{drawn}"


def listed(changes):
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def report_folder(folder, style, changes, with_changed):
    """Every experiment in `folder`, its seeds together, as a string."""
    numbers = tables.published()
    if with_changed:
        paths = [Path(path) for path in plans.experiments_below(folder, with_runs=True)]
        runs = {str(path.with_name(split_seed(path.name)[0])): None for path in paths}
    else:
        runs = {plans.run_folder(path, changes): path for path in plans.experiments_below(folder)}
    records = [record(run, numbers, plain, changes=changes) for run, plain in sorted(runs.items())]
    begun = [entry["experiment"] for entry in records if entry["n"] or entry["unfinished"]]
    records = [
        r for r in records if r["experiment"] in begun or not any(b.startswith(r["experiment"] + ",") for b in begun)
    ]
    if style not in STYLES:
        return dump(records, style)
    lines = [
        [
            entry["experiment"],
            entry["teacher"],
            shown(entry["best"], entry["best_sd"]) or entry["unfinished"] or "–",
            shown(entry["last"], entry["last_sd"]),
            signed(entry["difference"]),
            shown(entry["published"]),
            entry["n"],
        ]
        for entry in records
    ]
    return draw(lines, ["experiment", "teacher", "best acc", "last acc", "vs. alone", "paper", "runs"], style)


def shown(value, deviation=None):
    """ "94.56 ± 0.12"; empty where there is no value."""
    if value is None:
        return ""
    return f"{value:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def signed(value):
    return "" if value is None else f"{value:+.2f}"


def shown_best(entry, epoch="best"):
    """ "82.46 ± 0.31 (-4.18) n=3": ours, or how far it is. epoch: "last" for the accuracy there."""
    if entry["best"] is None:
        return entry["unfinished"] or "–"
    parts = [shown(entry[epoch], entry[f"{epoch}_sd"])]
    if entry["difference"] is not None:
        parts.append(f"({signed(entry['difference'])})")
    if entry["n"] > 1:
        parts.append(f"n={entry['n']}")
    if entry["unfinished"]:
        parts.append(f"[{entry['unfinished']}]")
    return " ".join(parts)


def shown_published(entry):
    """ "82.46 (-4.18) inside": the paper's number, and whether our 95 % prediction interval holds it."""
    parts = [shown(entry["published"])]
    if entry["published_difference"] is not None:
        parts.append(f"({signed(entry['published_difference'])})")
    if entry["published_inside"] is not None:
        parts.append("inside" if entry["published_inside"] else "outside")
    return " ".join(parts)


def draw(lines, headers, style):
    return tabulate(lines, headers, tablefmt=STYLES[style], disable_numparse=True)


def dump(records, style):
    """Records of one kind as CSV or JSON, numbers unrounded."""
    if style == "json":
        return json.dumps(records, indent=4, ensure_ascii=False)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().rstrip("\n")
