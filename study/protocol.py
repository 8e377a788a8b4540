"""Version 2 of the benchmark's protocol: threat presets, intervals, verdicts and limits. See docs/benchmark.md.

Every change in this file that changes a card needs a new VERSION.
"""

from dataclasses import dataclass

from study.intervals import half_width, mean

VERSION = 2
VALIDATION = 0.2  # share of a student's images that is held out for validation
TEACHER = {"validation": 0.1}  # keys of all teachers and of the networks they depend on
LARGEST_PRICE = 1.0  # points of accuracy that a teacher may lose
# If a student with labels only is better than one with logits by more than MISSED points, the card has a flag.
# AutoAttack (Croce and Hein, 2020) warns if its black-box attack beats its other attacks by more than 0.2 points.
MISSED = 0.2
PASSIVE = {"method": "kd", "temperature": 4, "alpha": 0.9}
SMOOTHING = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
COMMON_SPACE = {"learning_rate": (0.5, 1, 2)}  # factors of the value in the student's params.json


@dataclass(frozen=True)
class Preset:
    """What the attacker has.

    about: a phrase that completes "The attacker has". changes: {key: value} changed in all students. attacks: names of
    the allowed attacks; None: the attacks that tables.json lists for the benchmark. All of these use training images.
    """

    about: str
    changes: dict
    attacks: tuple | None = None


DATA_FREE = ("dafl", "dfad", "deepinversion", "fast_datafree")
PRESETS = {
    "insider": Preset("all training images with their labels, and logits", {"subset_percent": 1}),
    "few": Preset("10 % of the training images with their labels, and logits", {"subset_percent": 0.1}),
    "label_only": Preset(
        "all training images with their labels, and the teacher's label", {"subset_percent": 1, "answers": "label"}
    ),
    "no_data": Preset("no images, but the teacher's network", {"subset_percent": 1}, DATA_FREE),
}


def interval(values):
    """{"mean", "low", "high", "n"}: the mean of a list of differences, its 95 % t-interval, and their number.

    For a single difference, low and high are None.
    """
    middle, half = mean(values), half_width(values)
    low, high = (None, None) if half is None else (middle - half, middle + half)
    return {"mean": middle, "low": low, "high": high, "n": len(values)}


def paired(a, b):
    """The interval of a − b, two lists of accuracies over the same seeds."""
    return interval([x - y for x, y in zip(a, b, strict=True)])


def verdict(score, price, void):
    """The verdict of a card, one of `leaderboard.VERDICTS`.

    score, price: intervals; an unknown price is None. void: whether the undefended teacher does not help its
    student either. The preset then shows nothing about defences.
    """
    if void:
        return "not shown"
    if score["low"] is None or score["low"] <= 0:
        return "does not hold"
    if price is None:
        return "holds, price unknown"
    return "holds" if price["mean"] <= LARGEST_PRICE else "holds, at a price"
