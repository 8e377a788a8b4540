"""Formats of reports: numbers as text; tables as text, Markdown, LaTeX, CSV or JSON."""

import csv
import io
import json

from tabulate import tabulate

STYLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
FORMATS = (*STYLES, "csv", "json")


def titled(table, about, common, drawn, style):
    title = f"{table.title} ({table.source})\n{about}"
    if common:
        title += f"\nChanged keys: {listed(common)}."
    if style == "latex":
        title = "% " + title.replace("\n", "\n% ")
    return f"{title}\n\n{drawn}"


def listed(changes):
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def show(value, deviation=None):
    """ "94.56 ± 0.12", or "" without a value."""
    if value is None:
        return ""
    return f"{value:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def signed(value):
    return "" if value is None else f"{value:+.2f}"


def show_gain(entry):
    """ "-1.48 ± 0.33": over the student alone."""
    if entry["difference"] is None:
        return entry["unfinished"] or "–"
    spread = entry["difference_sd"]
    return signed(entry["difference"]) + (f" ± {spread:.2f}" if spread is not None else "")


def show_best(entry, epoch="best"):
    """ "82.46 ± 0.31 (-4.18) n=3", or the progress. epoch: "last" for the accuracy of the last epoch."""
    if entry["best"] is None:
        return entry["unfinished"] or "–"
    parts = [show(entry[epoch], entry[f"{epoch}_sd"])]
    if entry["difference"] is not None:
        parts.append(f"({signed(entry['difference'])})")
    if entry["n"] > 1:
        parts.append(f"n={entry['n']}")
    if entry["unfinished"]:
        parts.append(f"[{entry['unfinished']}]")
    return " ".join(parts)


def show_published(entry):
    """ "82.46 (-4.18)": the published accuracy, and its difference to the published baseline."""
    parts = [show(entry["published"])]
    if entry["published_difference"] is not None:
        parts.append(f"({signed(entry['published_difference'])})")
    return " ".join(parts)


def draw(lines, headers, style):
    return tabulate(lines, headers, tablefmt=STYLES[style], disable_numparse=True)


def dump(entries, style):
    """Entries as CSV or JSON, with unrounded numbers."""
    if style == "json":
        return json.dumps(entries, indent=4, ensure_ascii=False)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(entries[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue().rstrip("\n")
