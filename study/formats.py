"""Formats of reports: numbers as text; tables as text, Markdown, LaTeX, CSV or JSON."""

import csv
import io
import json

from tabulate import tabulate

from study.intervals import mean

STYLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
FORMATS = (*STYLES, "csv", "json")


def titled(table, about, common, lines, headers, style):
    """The title of a Table, the text `about`, and `lines` as a table. common: {key: value} changed in all runs.

    lines, headers, style: as in `tabulated`.
    """
    title = f"{table.title} ({table.source})\n{about}"
    if common:
        title += f"\nChanged keys: {listed(common)}."
    if style == "latex":
        title = "% " + title.replace("\n", "\n% ")
    return f"{title}\n\n{tabulated(lines, headers, style)}"


def listed(changes):
    """ "alpha 0.5, num_epochs 2": {key: value} as text."""
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def plus_minus(value, deviation=None, sign=""):
    """ "94.56 ± 0.12", or "" without a value. sign: "+" writes the sign of positive numbers."""
    if value is None:
        return ""
    return f"{value:{sign}.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def signed(value, deviation=None):
    """ "+1.20 ± 0.12", or "" without a value."""
    return plus_minus(value, deviation, "+")


def show_gain(entry):
    """ "-1.48 ± 0.33": the gain over the student alone; without a finished run, the progress."""
    return signed(entry["difference"], entry["difference_sd"]) or entry["unfinished"] or "–"


def show_accuracy(entry, epoch="best"):
    """ "82.46 ± 0.31 (-4.18) n=3"; without a finished run, the progress. epoch: whose accuracy: "best" or "last"."""
    if entry["best"] is None:
        return entry["unfinished"] or "–"
    parts = [plus_minus(entry[epoch], entry[f"{epoch}_sd"])]
    if entry["difference"] is not None:
        parts.append(f"({signed(entry['difference'])})")
    if entry["n"] > 1:
        parts.append(f"n={entry['n']}")
    if entry["unfinished"]:
        parts.append(f"[{entry['unfinished']}]")
    return " ".join(parts)


def show_published(entry):
    """ "82.46 (-4.18)": the published accuracy, and its difference to the published baseline."""
    parts = [plus_minus(entry["published"])]
    if entry["published_difference"] is not None:
        parts.append(f"({signed(entry['published_difference'])})")
    return " ".join(parts)


def conclude(table, source, rows):
    """Two sentences that compare the nasty and the normal teacher of a table, from one source.

    None if a number is missing, or if the table has no `conclusion`. source: the name of the source. rows: the entries
    of each row.
    """
    if not table.conclusion:
        return None
    alone, normal, nasty = (rows[table.conclusion[name]] for name in ("alone", "normal", "nasty"))
    wanted, students = [*alone[1:], *normal, *nasty], [*normal[1:], *nasty[1:]]
    if any(entry is None or entry["best"] is None for entry in wanted):
        return None
    if any(entry["difference"] is None for entry in students):  # no seed in common with the student alone
        return None
    seeds = min(entry["n"] for entry in wanted)
    price = normal[0]["last"] - nasty[0]["last"]
    from_normal, from_nasty = (mean([entry["difference"] for entry in row[1:]]) for row in (normal, nasty))
    return (
        f"{source} ({seeds} seed{'s' * (seeds > 1)}): at the last epoch, the nasty teacher is {abs(price):.1f} points "
        f"{'less' if price >= 0 else 'more'} accurate than the normal teacher. Compared with the same students without "
        f"a teacher, students of the nasty teacher are {better_or_worse(from_nasty)}, and students of the normal "
        f"teacher are {better_or_worse(from_normal)}."
    )


def better_or_worse(points):
    return f"{abs(points):.1f} points {'better' if points >= 0 else 'worse'}"


def tabulated(lines, headers, style):
    """Lines of texts, one text per column, as a table. style: one of STYLES."""
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
