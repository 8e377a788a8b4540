"""The leaderboard of a benchmark as Markdown, and the parts shared with the HTML page: order, numbers, texts, axis.

A card is a dictionary: the result of one defence under one threat preset. The functions here are pure: the same cards,
in any order, give the same text. Cards may come from other people, so every text in them is escaped, and only relative
paths become links.
"""

import html
import json
import math
import re

from study.intervals import mean
from study.protocol import PRESETS

VERDICTS = {
    "holds": "the whole interval of the score is above 0, and the price is at most 1 point on average.",
    "holds, at a price": "the whole interval of the score is above 0, but the price is more than 1 point on average.",
    "holds, price unknown": "the whole interval of the score is above 0; the teacher is a user's checkpoint.",
    "does not hold": "any other score.",
    "not shown": "the undefended teacher does not help its student, so the preset cannot compare defences.",
}
OF_OWN_TEACHERS = "holds, price unknown"
READING = {
    "Defence": "none is the undefended teacher.",
    "Score": "accuracy of the yardstick minus accuracy of the thief, in points, paired by seed. Brackets "
    "and whiskers show the 95 % t-interval over n seeds. Above 0, the thief is worse than a student without a teacher.",
    "Effect": "accuracy of the undefended teacher's thief minus accuracy of the thief, in points, paired by seed.",
    "Price": "test accuracy that the teacher loses because of the defence, in points.",
    "Gap": "accuracy of the thief minus that of a passive thief, whose attack is not tuned (kd; without images dafl). "
    "Part of it is due to the learning rate; compare it with the gap of none.",
    "Thief": "test accuracy, in percent, of the student of the chosen attack. The search chooses "
    "the attack and its settings on validation images. The final runs have other seeds than the search.",
    "Agreement": "percentage of test images for which thief and teacher predict the same class.",
    "Yardstick": "a student without a teacher, with or without label smoothing: the one that is better on validation "
    "images. Each is tuned with up to as many draws as the thief.",
    "Flags": "warnings that a number may be misleading.",
    "Order": 'highest score first; verdict "not shown" last. Scores are paired by seed, so defences with overlapping '
    "intervals may still differ. The effect compares a defence with no defence.",
}
COLUMNS = {  # {column: the interval or the percentages whose mean it shows}
    "Score": lambda card: card["score"],
    "Effect": lambda card: card.get("effect"),  # missing in version 1 of the protocol
    "Price": lambda card: card["teacher"]["price"],
    "Gap": lambda card: card["gap"],
    "Thief": lambda card: card["thief"]["accuracy"],
    "Agreement": lambda card: card["thief"]["agreement"],
}


def make_markdown(cards, root=""):
    """The leaderboard as a string. root: the path from the folder of the file to the project root, such as "../"."""
    lines = ["# Leaderboard of defences against distillation", "", f"{len(cards)} cards: {count(cards)}."]
    lines += [f"Measured at commit {markdown(commits(cards))}.", "", "How to read the score:", ""]
    lines += [f"- **{name}**: {text}" for name, text in READING.items()]
    lines += ["", "A verdict names the version of the protocol and the threat preset:", ""]
    lines += [f"- **{name}**: {text}" for name, text in VERDICTS.items()]
    heads = ["Defence", "Verdict", *COLUMNS, "Chosen thief", "Flags", "Records"]
    for preset, tables in groups(cards).items():
        lines += ["", f"## Preset {markdown(preset)}", "", about(preset)]
        for name, ranked in tables.items():
            rows = [heads, ["---"] * len(heads), *(row(card, root) for card in ranked)]
            lines += ["", f"{markdown(name)}:", "", *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines) + "\n"


def row(card, root):
    """The cells of a card in a Markdown table."""
    numbers = [" ".join(filter(None, column(card, name)[1:])) for name in COLUMNS]
    path, records = record_path(card, root), markdown(card.get("records", "–"))
    return [
        markdown(card["defence"]) + (f" ({markdown(card['source'])})" if card["source"] else ""),
        f"**{markdown(card['verdict'])}** {markdown(qualifier(card))}",
        *map(markdown, numbers),
        markdown(settings(card["thief"])),
        "; ".join(map(markdown, card["flags"])),
        f"[{records}]({path})" if path else records,
    ]


def markdown(text):
    """`text` on one line, with the special characters of Markdown and HTML escaped."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]|~$]", r"\\\g<0>", text)


def number(value, sign=""):
    """A number with two decimals, or a dash. sign: "+" writes the sign of positive numbers."""
    if not known(value):
        return "–"
    return f"{round(value, 2) or 0.0:{sign}.2f}".replace("+0.00", "0.00").replace("-", "−")


def known(value):
    """Whether `value` is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def column(card, name):
    """(value or None, its text, the text of its interval) of a card in one of COLUMNS."""
    item = COLUMNS[name](card)
    if item is None:
        return None, "–", ""
    if not isinstance(item, dict):
        average = mean(item)
        return average, number(average), ""
    ends = ", ".join(number(item[end], "+") for end in ("low", "high"))
    seeds = f", n = {item['n']}" if name == "Score" else ""
    return item["mean"] if known(item["mean"]) else None, number(item["mean"], "+"), f"[{ends}]{seeds}"


def rank(card):
    """The score by which a card is sorted; None if it has none, or if its verdict is "not shown"."""
    return None if card["verdict"] == "not shown" else column(card, "Score")[0]


def settings(part):
    """The attack and the settings in a part of a card, such as card["thief"], as text."""
    shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in part["settings"].items()}
    keys = ", ".join(f"{key} {value}" for key, value in sorted(shown.items()))
    return ": ".join(filter(None, (part.get("attack"), keys)))


def about(preset):
    """A sentence on what the attacker has under a preset."""
    return f"The attacker has {PRESETS[preset].about}." if preset in PRESETS else ""


def qualifier(card):
    """The scope of a verdict: version of the protocol and preset."""
    return f"(v{card['protocol']}, {card['preset']})"


def count(cards):
    """The number of cards with each verdict, as text. The verdict of own teachers is left out if no card has it."""
    verdicts = [card["verdict"] for card in cards]
    shown = [name for name in VERDICTS if name != OF_OWN_TEACHERS or name in verdicts]
    return ", ".join(f'{verdicts.count(name)} "{name}"' for name in shown)


def commits(cards):
    """All commits at which cards were measured."""
    return ", ".join(sorted({str(card["commit"]) for card in cards}))


def record_path(card, root):
    """The link to the records of a card, or None if they are not named by a relative path."""
    path = str(card.get("records", ""))
    return root + path if re.fullmatch(r"[\w.-]+(/[\w.-]+)*", path) else None


def groups(cards):
    """{preset: {"BENCHMARK, protocol vN": cards, the highest score first}}, presets in the order of PRESETS."""
    order, by_preset = list(PRESETS), {}
    for card in sorted(cards, key=sorting_key):
        tables = by_preset.setdefault(str(card["preset"]), {})
        tables.setdefault(f"{card['benchmark']}, protocol v{card['protocol']}", []).append(card)
    names = sorted(by_preset, key=lambda name: (order.index(name) if name in order else len(order), name))
    return {name: dict(sorted(by_preset[name].items())) for name in names}


def sorting_key(card):
    """The key that sorts cards: the highest score first, cards without a score last."""
    score = rank(card)
    return score is None, -(score or 0), str(card["defence"]), json.dumps(card, sort_keys=True)


def make_axis(cards):
    """(lowest tick, highest tick, step): an axis that contains 0 and the whole interval of each score."""
    ends = [0, *(card["score"][end] for card in cards for end in ("mean", "low", "high") if known(card["score"][end]))]
    ends = ends if any(ends) else [0, 1]
    rough = (max(ends) - min(ends)) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return math.floor(min(ends) / step) * step, math.ceil(max(ends) / step) * step, step
