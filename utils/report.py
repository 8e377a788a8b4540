"""Results as text, Markdown, LaTeX, CSV or JSON."""

import csv
import io
import json
from pathlib import Path

from tabulate import tabulate

from utils import plan as plans
from utils import tables

STYLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
FORMATS = (*STYLES, "csv", "json")


def report(target, style="text"):
    """The results of a target, a folder or a name in experiments/tables.json, as a string."""
    if tables.is_folder(target):
        return report_folder(target, style)
    return report_table(tables.load_table(target), style)


def report_table(table, style="text"):
    """A target as the paper prints it, the paper's numbers below each row of ours, as a string."""
    numbers = tables.published()
    records = [[cell and tables.record(tables.run_of(cell), numbers) for cell in cells] for _, cells in table.rows]
    rows = [name for name, _ in table.rows]
    if style not in STYLES:
        cells = [
            {"row": row, "column": column} | entry
            for row, entries in zip(rows, records, strict=True)
            for column, entry in zip(table.columns, entries, strict=True)
            if entry
        ]
        return dump(cells, style)
    lines = []
    for row, entries in zip(rows, records, strict=True):
        lines.append([row, "best", *(entry and shown_best(entry) for entry in entries)])
        lines.append(["", "last", *(entry and shown(entry["last"], entry["last_sd"]) for entry in entries)])
        if any(entry and entry["published"] for entry in entries):
            lines.append(["", "paper", *(entry and shown_published(entry) for entry in entries)])
    title = (
        f"{table.title} ({table.source})\nTest accuracy in %; in brackets: minus the same student's without a teacher."
    )
    if style == "latex":
        title = "% " + title.replace("\n", "\n% ")
    return f"{title}\n\n{draw(lines, ['', '', *table.columns], style)}"


def report_folder(folder, style="text"):
    """Every experiment in `folder`, its seeds together, as a string."""
    numbers = tables.published()
    paths = [Path(path) for path in plans.experiments_below(folder, with_runs=True)]
    runs = sorted({str(path.with_name(tables.split_seed(path.name)[0])) for path in paths})
    records = [tables.record(run, numbers) for run in runs]
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


def shown_best(entry):
    """ "82.46 ± 0.31 (-4.18) n=3": ours, or how far it is."""
    if entry["best"] is None:
        return entry["unfinished"] or "–"
    parts = [shown(entry["best"], entry["best_sd"])]
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
