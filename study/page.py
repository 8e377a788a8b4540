"""The leaderboard of a benchmark as one self-contained HTML page.

Cards may come from other people. So every text in a card is escaped, only relative paths become links, and the content
security policy allows only the script and the style of this page. The layout is in page.html, page.css and page.js.
"""

import base64
import hashlib
import html
import re
from pathlib import Path
from string import Template

from study import leaderboard as board
from study.intervals import mean as average

NETWORKS = {  # {row of a card's details: (part of the card, item with one number per seed)}
    "Teacher": ("teacher", "accuracy"),
    "Teacher, undefended": ("teacher", "undefended"),
    "Thief": ("thief", "accuracy"),
    "Thief, agreement": ("thief", "agreement"),
    "Passive thief": ("passive", "accuracy"),
    "Yardstick": ("yardstick", "accuracy"),
    "Student alone": ("alone", "accuracy"),
    "Student with label smoothing": ("label smoothing", "accuracy"),
}


def make_html(cards, root=""):
    """The page as a string. root: the path from the folder of the page to the project root, such as "../"."""
    groups, axis = board.groups(cards), board.make_axis(cards)
    files = {end: (Path(__file__).parent / f"page.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js")}
    links = {"all": "All presets"} | {slug(preset): esc(preset) for preset in groups}
    return Template(files["html"]).substitute(
        files, css_hash=csp_hash(files["css"]), js_hash=csp_hash(files["js"]), cards=len(cards),
        benchmarks=esc(" · ".join(sorted({name for tables in groups.values() for name in tables}))),
        commits=esc(board.commits(cards)), count=esc(board.count(cards)), overview=overview(groups),
        links="".join(f'<a href="#{name}">{label}</a>' for name, label in links.items()),
        sections="\n".join(section(preset, tables, axis, root) for preset, tables in groups.items()),
        reading="".join(f"<dt>{name}</dt><dd>{esc(text)}</dd>" for name, text in board.READING.items()),
        verdicts="".join(f"<dt>{badge(name)}</dt><dd>{esc(text)}</dd>" for name, text in board.VERDICTS.items()),
    )  # fmt: skip


def overview(groups):
    """The content of a table of defences × presets, with the score and the verdict of each card.

    groups: {preset: {benchmark: cards}}; see `leaderboard.groups`.
    """
    rows, several = {}, len({name for tables in groups.values() for name in tables}) > 1
    for preset, tables in groups.items():
        for name, card in ((name, card) for name, cards in tables.items() for card in cards):
            cells = rows.setdefault((str(card["defence"]), name if several else ""), dict.fromkeys(groups, ""))
            cells[preset] += f"<div><b>{board.column(card, 'Score')[1]}</b>{badge(card['verdict'])}</div>"
    heads = "".join(f'<th scope="col"><a href="#{slug(name)}"><code>{esc(name)}</code></a></th>' for name in groups)
    lines = [f'<thead><tr><th scope="col">Defence</th>{heads}</tr></thead><tbody>']
    for (defence, name), cells in sorted(rows.items()):
        shown = "".join(f"<td>{cell}</td>" for cell in cells.values())
        lines.append(f'<tr><th scope="row">{esc(defence)}<small>{esc(name)}</small></th>{shown}</tr>')
    return "\n".join([*lines, "</tbody>"])


def section(preset, tables, axis, root):
    """The part of the page on one threat preset, with a table for each benchmark."""
    head = '<th role="columnheader" scope="col" data-sort="{}" aria-sort="{}"><span>{}</span>{}</th>'.format
    heads = [head("text", "none", name, "") for name in ("Defence", "Verdict")]
    for name in board.COLUMNS:
        order, ticks = ("descending", svg(axis)) if name == "Score" else ("none", "")
        heads.append(head("number", order, name, ticks))
    verdicts = board.count([card for cards in tables.values() for card in cards])
    lines = [f'<section class="preset" id="{slug(preset)}"><h2>Preset <code>{esc(preset)}</code></h2>']
    lines.append(f"<p>{esc(board.about(preset))} <b>{esc(verdicts)}.</b></p>")
    for name, cards in tables.items():
        lines.append(f'<table class="board" role="table"><caption>{esc(name)}</caption>')
        lines.append(f'<thead role="rowgroup"><tr role="row">{"".join(heads)}</tr></thead>')
        lines += [*(body(card, axis, root) for card in cards), "</table>"]
    return "\n".join([*lines, "</section>"])


def body(card, axis, root):
    """The rows of one card: its numbers; below them its thief, its flags and its details."""
    cell = '<td role="cell" data-label="{}" data-value="{}">{}<small>{}</small></td>'.format
    name, verdict = esc(card["defence"]), card["verdict"]
    cells = [cell("Verdict", esc(verdict), badge(verdict), esc(board.qualifier(card)))]
    for label in board.COLUMNS:
        value, text, interval = board.column(card, label)
        value, bar = (board.rank(card), svg(axis, card)) if label == "Score" else (value, "")
        cells.append(cell(label, "" if value is None else value, f"{bar}<b>{text}</b>", esc(interval)))
    flags = "".join(f'<span class="flag">{esc(flag)}</span>' for flag in card["flags"])
    return (
        f'<tbody role="rowgroup" class="{slug(verdict)}"><tr role="row"><th role="rowheader" scope="row" '
        f'data-value="{name}">{name}<small>{esc(card["source"] or "")}</small></th>{"".join(cells)}</tr>\n'
        f'<tr role="row"><td role="cell" colspan="{len(board.COLUMNS) + 2}"><details><summary>Thief '
        f"<code>{esc(board.settings(card['thief']))}</code>{flags}</summary>{details(card, root)}"
        "</details></td></tr></tbody>"
    )


def details(card, root):
    """The details of a card: settings, numbers per seed, and provenance."""
    names = ["Network", "Settings", "Mean", *(f"Seed {seed}" for seed in card["seeds"])]
    heads, rows = "".join(f'<th scope="col">{esc(name)}</th>' for name in names), []
    for name, (role, key) in NETWORKS.items():
        if (card.get(role) or {}).get(key) is not None:
            settings = board.settings(card[role]) if key == "accuracy" else ""
            values = [settings, *(board.number(value) for value in (average(card[role][key]), *card[role][key]))]
            rows.append(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{esc(value)}</td>" for value in values)}</tr>')
    facts = {
        "Reported": "–" if card["reported"] is None else card["reported"],
        "Queries": card["thief"]["queries"],
        "Draws": card["draws"],
        "Commit": card["commit"],
        "Environment": card["environment"],
        "Teachers' digests": ", ".join(map(str, card["teacher"]["weights"])),
        "Card's digest": card["digest"],
    }
    facts = "".join(f"<dt>{name}</dt><dd>{esc(fact)}</dd>" for name, fact in facts.items())
    path, shown = board.record_path(card, root), esc(card.get("records", "–"))
    shown = f'<a href="{esc(path)}">{shown}</a>' if path else shown
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Numbers per seed"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<dl>{facts}<dt>Records</dt><dd>{shown}</dd></dl>"
    )


def svg(axis, card=None):
    """The ticks of the axis of scores; with a card, also the bar of its mean and the whisker of its interval."""
    lowest, highest, step = axis

    def x(value):  # in percent of the width, which depends on the screen
        return f"{100 * (value - lowest) / (highest - lowest):.2f}%"

    def vertical(name, value, top, bottom):
        return f'<line class="{name}" x1="{x(value)}" x2="{x(value)}" y1="{top}" y2="{bottom}"/>'

    parts = []
    for tick in (lowest + index * step for index in range(round((highest - lowest) / step) + 1)):
        name, label = "tick" if abs(tick) > step / 2 else "zero", f"{tick:.6g}".replace("-", "−")
        parts.append(vertical(name, tick, 0, 24) + f'<text x="{x(tick)}" y="37">{label}</text>')
    mean, low, high = (card["score"][end] if card else None for end in ("mean", "low", "high"))
    if board.known(mean):
        width = f"{100 * abs(mean) / (highest - lowest):.2f}%"
        parts.append(f'<rect x="{x(min(0, mean))}" width="{width}" y="4" height="16"/>')
    if board.known(low) and board.known(high):
        parts.append(f'<line class="whisker" x1="{x(low)}" x2="{x(high)}" y1="12" y2="12"/>')
        parts.append(vertical("whisker", low, 8, 16) + vertical("whisker", high, 8, 16))
    return f'<svg class="{"bar" if card else "axis"}" aria-hidden="true">{"".join(parts)}</svg>'


def badge(verdict):
    return f'<span class="badge {slug(verdict)}">{esc(verdict)}</span>'


def slug(text):
    """A text as an identifier of HTML: letters, digits, hyphens and underscores."""
    return re.sub(r"[^\w-]+", "-", str(text)) or "-"


def esc(text):
    return html.escape(str(text))


def csp_hash(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
