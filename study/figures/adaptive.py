"""Scores of the benchmark against the passive thief, and against the thief that the search chose for each defence."""

from study.cards import read_cards
from study.figures import style
from study.protocol import PRESETS, paired
from study.tables import find_entry


def adaptive(target):
    """Draw the score of each defence against the passive and against the chosen thief, with a panel for each preset.

    Defences are ordered by their score against the passive thief. Whiskers: 95 % t-intervals over seeds.
    """
    find_entry(target, "benchmark")
    cards = read_cards(target)
    presets = [preset for preset in PRESETS if any(card["preset"] == preset for card in cards)]
    most = max(sum(card["preset"] == preset for card in cards) for preset in presets)
    figure, [axes] = style.grid(1, len(presets), 0.9 + 0.22 * most)
    for ax, preset in zip(axes, presets, strict=True):
        pairs = [(passive_score(card), card) for card in cards if card["preset"] == preset]
        pairs.sort(key=lambda item: item[0]["mean"])
        for height, (passive, card) in enumerate(pairs):
            chosen = card["score"]
            ax.plot([passive["mean"], chosen["mean"]], [height, height], color=style.GREY, linewidth=0.8, zorder=1)
            for score, look in zip((passive, chosen), LOOKS, strict=True):
                ax.errorbar(score["mean"], height, xerr=half_width(score), elinewidth=0.9, capsize=2, **look)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.set_yticks(range(len(pairs)), [card["defence"] for _, card in pairs])
        ax.set_title(preset, loc="left")
        ax.grid(axis="x")
    handles = [ax.plot([], [], **look)[0] for look in LOOKS]
    name = "passive thief" if "no_data" in presets else "plain distillation (T = 4, α = 0.9)"
    style.legend(figure, handles, [name, "chosen thief (AutoSteal)"])
    figure.supxlabel("score: student without a teacher minus thief, points of test accuracy (above 0: protected)")
    return figure


LOOKS = [
    {"color": style.COLOURS[0], "marker": "o", "linestyle": "none", "markerfacecolor": "white"},
    {"color": style.COLOURS[1], "marker": "o", "linestyle": "none"},
]


def passive_score(card):
    """The score of a card's defence against its passive thief."""
    return paired(card["yardstick"]["accuracy"], card["passive"]["accuracy"])


def half_width(score):
    return None if score["high"] is None else score["high"] - score["mean"]
