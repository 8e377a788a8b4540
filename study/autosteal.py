"""AutoSteal: the search for the strongest attack on a defended teacher.

A fixed number of settings, called draws, is sampled from a search space. The random generator has a seed, so a
repeated search has the same draws. Draw 0 is plain knowledge distillation, or, without data, the first data-free attack
with default settings.

Successive halving has several stages, called rungs. The first rung trains all draws for a part of their epochs. Each
further rung continues the best third of the draws. The last rung has at most three draws and trains them for all
epochs. The draw with the highest accuracy on the validation images is chosen; in a tie, the one with the lowest loss.
"""

import numpy as np

import method
from study.protocol import COMMON_SPACE, PASSIVE, SMOOTHING

KEEP = 3  # one in KEEP draws continues to the next rung


def space_of(attack):
    """{key: list of values to draw from}: the search space that an attack declares; see `utils.keys.key`."""
    fields = getattr(method.find(attack).Params, "__dataclass_fields__", {})
    return {name: field.metadata["search"] for name, field in fields.items() if "search" in field.metadata}


def draw_thieves(attacks, count, student, seed):
    """`count` draws for a student with a teacher: dictionaries of changed keys. The first is `passive(attacks)`.

    attacks: {name: fixed keys}; the draws use these attacks in turn, and all draws of an attack have its fixed keys.
    student: the content of the student's params.json, whose learning rate is varied.
    """
    generator, names = np.random.default_rng(seed), list(attacks)
    draws = [passive(attacks)]
    for number in range(1, count):
        name = names[number % len(names)]
        settings = attacks[name] | sample(space_of(name), generator) | sample_common(student, generator)
        draws.append({"method": name} | settings)
    return draws


def passive(attacks):
    """The changed keys of a thief that is not tuned: plain distillation, or else the first of `attacks`."""
    first = next(iter(attacks))
    return dict(PASSIVE) if PASSIVE["method"] in attacks else {"method": first} | attacks[first]


def draw_students(count, student, seed, smoothing):
    """`count` draws for a student without a teacher: dictionaries of changed keys. The first is not tuned.

    smoothing: whether label smoothing is used and varied as well. student, seed: as in `draw_thieves`.
    """
    generator = np.random.default_rng(seed)
    draws = [{"label_smoothing": 0.1} if smoothing else {}]
    for _ in range(1, count):
        smoothed = sample({"label_smoothing": SMOOTHING}, generator) if smoothing else {}
        draws.append(smoothed | sample_common(student, generator))
    return draws


def sample(space, generator):
    """{key: value}: for each key of a search space {key: values}, one of the values, chosen uniformly at random."""
    return {name: values[generator.integers(len(values))] for name, values in space.items()}


def sample_common(student, generator):
    """{key: value} for the keys of COMMON_SPACE: the value in `student` times a sampled factor."""
    factors = sample(COMMON_SPACE, generator)
    return {name: student[name] * factor for name, factor in factors.items()}


def rungs(count, epochs):
    """[(number of draws, epoch until which they train), …] of successive halving; the last rung trains all epochs."""
    steps = [count]
    while steps[-1] > KEEP:
        steps.append(-(-steps[-1] // KEEP))
    return [(n, max(1, epochs // KEEP ** (len(steps) - 1 - i))) for i, n in enumerate(steps)]


def ranked(scored):
    """The numbers of the draws in `scored`, {number: score}, highest score first. In a tie, the lower is first."""
    return sorted(sorted(scored), key=scored.get, reverse=True)


def at_edge(thief, student):
    """Names of the numeric keys whose value in `thief` is the smallest or the largest value of the search space.

    thief: a chosen draw. student: the content of the student's params.json. Keys with at most two values, and `alpha`,
    are left out.
    """
    common = {name: [student[name] * factor for factor in factors] for name, factors in COMMON_SPACE.items()}
    space = space_of(thief["method"]) | common
    numeric = {name: values for name, values in space.items() if all(isinstance(v, (int, float)) for v in values)}
    checked = {name: values for name, values in numeric.items() if len(values) > 2 and name != "alpha"}
    return [name for name, values in checked.items() if thief.get(name) in (min(values), max(values))]
