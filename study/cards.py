"""Cards: the result of a defence under a threat preset, as a dictionary for JSON. See docs/benchmark.md.

This file reads, writes and prints cards; scoring.py makes them.
"""

import json

from tabulate import tabulate

from study.intervals import mean
from utils.digest import digest
from utils.errors import UserError
from utils.paths import display_path, from_root, make_folder, write_file

RESULTS = "results"


def cards_path(name, own=None):
    """The file with the cards of the benchmark `name`. own: an OwnTeacher; its cards lie beside its checkpoint."""
    return from_root(own.file).with_name("cards.jsonl") if own else from_root(RESULTS) / f"{name}.cards.jsonl"


def write_cards(name, cards, own=None):
    """Write the cards of the benchmark `name`. They replace older cards of the same defence, preset and attacks.

    own: as for `cards_path`. Raises UserError if a card of another teacher was measured with modified code, or if the
    file cannot be written.
    """
    if not own and (modified := [card["defence"] for card in cards if card["commit"].endswith("-dirty")]):
        defences = ", ".join(dict.fromkeys(modified))
        raise UserError(f"{name}: cards not written: {defences}: measured with modified code; commit it and run again")
    path = cards_path(name, own)
    older = read_file(path) if path.exists() else []
    merged = {(card["defence"], card["preset"], *card.get("attacks", ())): card for card in (*older, *cards)}
    content = "".join(json.dumps(merged[key], ensure_ascii=False) + "\n" for key in sorted(merged))
    make_folder(path.parent)
    write_file(path, lambda file: file.write(content.encode()), shared=True)


def read_cards(name, attacks=None, rows=None):
    """The cards of the benchmark `name`. Raises UserError if there are none, or if one was edited.

    attacks: names of attacks. The cards are those of searches that were restricted to all or some of these attacks;
    default: those of searches that were not restricted. rows: names of defences; default: all.
    """
    path = cards_path(name)
    restricted, wanted = bool(attacks), set(attacks or ())
    cards = [
        card
        for card in (read_file(path) if path.exists() else [])
        if ("attacks" in card) == restricted and set(card.get("attacks", ())) <= wanted
        if not rows or card["defence"] in rows
    ]
    if not cards:
        flags = [word for flag, names in (("--rows", rows), ("--columns", attacks)) if names for word in (flag, *names)]
        command = " ".join([f"python reproduce.py {name}", *flags])
        raise UserError(f"{display_path(path)}: there are no such cards; make them with: {command}")
    return cards


def read_file(path):
    """All cards in a file. Raises UserError if one was edited."""
    cards = []
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        try:
            card = json.loads(line.decode())
            intact = card["digest"] == digest(card)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{display_path(path)}: line {number} is not a card") from None
        if not intact:
            raise UserError(f"{display_path(path)}: line {number}: the card was edited, its digest differs")
        cards.append(card)
    return cards


def show(cards, style="simple"):
    """Cards as a table in plain text, one line for each card. style: a table format of the package `tabulate`."""
    lines = [
        [
            card["preset"],
            card["defence"],
            show_interval(card["score"]),
            card["verdict"],
            show_interval(card["teacher"]["price"]),
            f"{mean(card['thief']['accuracy']):.2f}",
            describe(card["thief"]),
            show_interval(card["gap"]),
            "; ".join(card["flags"]),
        ]
        for card in cards
    ]
    headers = ["preset", "defence", "score [95 %]", "verdict", "price", "thief", "its settings", "gap", "flags"]
    return tabulate(lines, headers, tablefmt=style, disable_numparse=True)


def show_interval(interval):
    """ "+1.20 [+0.40, +2.00]": the mean of a `protocol.interval`, and its ends if there are several seeds."""
    if interval is None:
        return "unknown"
    if interval["low"] is None:
        return f"{interval['mean']:+.2f}"
    return f"{interval['mean']:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]"


def describe(student):
    """ "kd, temperature 4, alpha 0.9": the attack and the settings of a student of a card, such as card["thief"]."""
    settings = (
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in student["settings"].items()
    )
    return ", ".join([student["attack"], *settings])
