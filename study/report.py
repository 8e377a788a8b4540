"""Results as text, Markdown, LaTeX, CSV or JSON: published numbers, records, and local runs."""

from pathlib import Path

from study import tables
from study.baselines import baseline
from study.formats import (
    STYLES,
    draw,
    dump,
    listed,
    show,
    show_best,
    show_gain,
    show_published,
    signed,
    titled,
)
from study.intervals import deviation, in_prediction_interval, mean
from study.ledger import Local, Recorded
from training import spec
from utils.errors import UserError

ABOUT = (
    "{} accuracy in %. paper: published. here: the records of this repository. yours: run folders on this machine.\n"
    "In brackets: minus the same student without a teacher, over the seeds that both have."
)


def report(target, style="text", sources=None, with_changed=True, **selection):
    """The results of a target, a folder or a name in experiments/tables.json, as a string.

    sources: of accuracies; default: the records and the local runs. with_changed: whether the table of a folder lists
    runs with changed keys, too. selection: `common`, `rows` and `columns`; see `tables.load_table`.
    """
    sources, common = sources or (Recorded(), Local()), selection.get("common")
    if tables.is_folder(target):
        if selection.get("rows") or selection.get("columns"):
            raise UserError(tables.NO_MATRIX.format(target))
        return report_folder(target, style, common, sources, with_changed)
    table = tables.load_table_to_print(target, **selection)
    draw_table = report_matrix if isinstance(table, tables.Matrix) else report_table
    return draw_table(table, style, common, sources)


def report_table(table, style, common, sources):
    """A table as the paper prints it. Below each other: the paper's numbers, those recorded here, and yours."""
    found = [[[cell and entry_of(cell, source) for cell in cells] for source in sources] for _, cells in table.rows]
    if style not in STYLES:
        return dump(flat(table, found), style)
    lines = []
    for (name, cells), by_source in zip(table.rows, found, strict=True):
        block = []
        if any(cell and cell.published is not None for cell in cells):
            block.append(["paper", *(entry and show_published(entry) for entry in by_source[0])])
        for source, entries in zip(sources, by_source, strict=True):
            if any(entry and (entry["n"] or entry["unfinished"]) for entry in entries):
                block.append([f"{source.name} best", *(entry and show_best(entry) for entry in entries)])
                block.append(["last", *(entry and show(entry["last"], entry["last_sd"]) for entry in entries)])
        block = block or [["not yet run", *(cell and "–" for cell in cells)]]
        lines += [[name if i == 0 else "", *line] for i, line in enumerate(block)]
    parts = " and ".join(dict.fromkeys(cell.part for cell in table.cells()))
    text = titled(table, ABOUT.format(parts.capitalize()), common, draw(lines, ["", "", *table.columns], style), style)
    sentences = [conclude(table, source.name, [rows[i] for rows in found]) for i, source in enumerate(sources)]
    return "\n\n".join([text, *filter(None, sentences)]) if style != "latex" else text


def conclude(table, source, rows):
    """The conclusion from the table, a sentence; None if a number is missing or the table declares no conclusion."""
    if not table.conclusion:
        return None
    alone, normal, nasty = (rows[table.conclusion[name]] for name in ("alone", "normal", "nasty"))
    wanted = [*alone[1:], *normal, *nasty]
    if any(entry is None or entry["best"] is None for entry in wanted):
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


def report_matrix(matrix, style, common, sources):
    """The gain of each attack over the student alone, for each defence, and the strongest attack, as a string."""
    found = [read_matrix(matrix, source) for source in sources]
    if style not in STYLES:
        return dump(
            [entry for source, part in zip(sources, found, strict=True) for entry in flat_matrix(matrix, *part)], style
        )
    lines = []
    about = [
        "Test accuracy in %: of the teacher, as its students load it; of the students, best epoch minus that of the",
        "student alone, seed by seed.",
    ]
    for i, (name, (cell, *_)) in enumerate(matrix.rows):
        above = len(lines)
        for source, (_, smoothed, rows) in zip(sources, found, strict=True):
            teacher, attacks = rows[i]
            if not any(entry["n"] or entry["unfinished"] for entry in (teacher, *attacks)):
                continue
            attack, best = strongest(matrix, rows)[i] or ("", None)
            comparable = best and best["difference_n"] == smoothed["difference_n"]
            over = best["difference"] - smoothed["difference"] if comparable else None
            lines.append([name, source.name, show_best(teacher, cell.epoch), *map(show_gain, attacks)])
            lines[-1] += [f"{attack} {show_gain(best)}" if best else "", signed(over)]
        if len(lines) == above:
            lines.append([name, "not yet run", *("–" for _ in matrix.columns), "", ""])
    for source, (alone, smoothed, _) in zip(sources, found, strict=True):
        if alone["n"]:
            parts = [f"alone {show_best(alone)}", f"yardstick ({changes(matrix.yardstick)}) {show_best(smoothed)}"]
            if matrix.control:
                control = entry_of(matrix.control, source, matrix.alone.spec)
                parts.append(f"control of htc ({changes(matrix.control)}) {show_best(control)}")
            about.append(f"{source.name}: {'; '.join(parts)}.")
    headers = ["defence", "", *matrix.columns, "strongest attack", "minus yardstick"]
    return titled(matrix, "\n".join(about), common, draw(lines, headers, style), style)


def changes(cell):
    """The changed keys of a cell, as text."""
    return listed(dict(cell.spec.changes))


def read_matrix(matrix, source):
    """(entry of the student alone, of the yardstick, for each row (the teacher's, [each attack's])) of a source."""
    alone = matrix.alone.spec
    rows = [
        (entry_of(teacher, source), [entry_of(cell, source, alone) for cell in attacks])
        for _, (teacher, *attacks) in matrix.rows
    ]
    return entry_of(matrix.alone, source), entry_of(matrix.yardstick, source, alone), rows


def strongest(matrix, rows):
    """For each row of `read_matrix`, (name, entry) of the attack whose student gains most.

    None if attacks have different numbers of seeds. A new attack that has run for no row does not count.
    """
    columns = [[attacks[i] for _, attacks in rows] for i in range(len(matrix.columns) - 1)]
    counting = {
        name: column
        for name, column in zip(matrix.columns[1:], columns, strict=True)
        if name not in matrix.new or any(entry["difference_n"] for entry in column)
    }
    return [strongest_of({name: column[i] for name, column in counting.items()}) for i in range(len(rows))]


def strongest_of(attacks):
    counts = {entry["difference_n"] for entry in attacks.values()}
    if len(counts) != 1 or 0 in counts:
        return None
    return max(attacks.items(), key=lambda item: item[1]["difference"])


def entry_of(cell, source, alone=None):
    """All numbers of a cell from one source, as a flat dictionary.

    alone: the Spec to which the difference is taken; default: for a student, its baseline.
    """
    summary = source.summary(cell.spec, cell.part)
    raw = cell.spec.raw
    teacher = raw.get("teacher_resume") or raw.get("adversarial_resume")
    if alone is None and "teacher_resume" in raw:
        alone = baseline(cell.spec)
    gains = summary.gains(source.summary(alone)) if alone else []
    return {
        "experiment": cell.spec.folder.removeprefix("experiments/"),
        "source": source.name,
        "teacher": Path(teacher).parent.name if teacher else "",
        "n": len(summary.best),
        "best": mean(summary.best.values()),
        "best_sd": deviation(summary.best.values()),
        "last": mean(summary.last.values()),
        "last_sd": deviation(summary.last.values()),
        "difference": mean(gains),
        "difference_sd": deviation(gains),
        "difference_n": len(gains),
        "published": cell.published,
        "published_difference": published_difference(cell, alone),
        "published_inside": in_prediction_interval(cell.published, list(summary.best.values())),
        "unfinished": ", ".join(summary.unfinished),
    }


def published_difference(cell, alone):
    if cell.published is None or alone is None:
        return None
    other = tables.published().get(alone.experiment)
    return None if other is None else cell.published - other


def report_folder(folder, style, common, sources, with_changed):
    """The runs of the experiments in `folder`, all seeds of a run in one line, as a string."""
    numbers = tables.published()
    found = {}
    for experiment in tables.experiments_below(folder) or [spec.of_folder(tables.located(folder)).experiment]:
        found[spec.make(experiment, common=common).any_seed] = None
        if with_changed and not common:
            changed = {run for source in sources for run in source.runs_of(experiment)}
            found |= dict.fromkeys(sorted(changed, key=lambda run: run.folder))
    entries = []
    for run in found:
        cell = tables.Cell(run, numbers.get(run.experiment) if not run.changes else None)
        both = [entry_of(cell, source) for source in sources]
        begun = [entry for entry in both if entry["n"] or entry["unfinished"]]
        entries += begun or both[:1]
    if style not in STYLES:
        return dump(entries, style)
    lines = [
        [
            entry["experiment"],
            entry["teacher"],
            entry["source"] if entry["n"] or entry["unfinished"] else "",
            show(entry["best"], entry["best_sd"]) or entry["unfinished"] or "–",
            show(entry["last"], entry["last_sd"]),
            signed(entry["difference"]),
            show(entry["published"]),
            entry["n"],
        ]
        for entry in entries
    ]
    return draw(lines, ["experiment", "teacher", "", "best acc", "last acc", "vs. alone", "paper", "runs"], style)


def flat(table, found):
    """The entries of a table, one after the other, each with its row, column and source."""
    return [
        {"row": name, "column": column} | entry
        for (name, _), by_source in zip(table.rows, found, strict=True)
        for entries in by_source
        for column, entry in zip(table.columns, entries, strict=True)
        if entry
    ]


def flat_matrix(matrix, alone, smoothed, rows):
    own = [{"row": "alone", "column": "student"} | alone, {"row": "yardstick", "column": "student"} | smoothed]
    return own + flat(matrix, [[[teacher, *attacks]] for teacher, attacks in rows])
