"""The generated parts of the pages, each as a string of Markdown; see make.py."""

import dataclasses
import functools
import importlib
import json
import pkgutil
from pathlib import Path

import torch
from tabulate import tabulate

import model
from method.attack import Attack
from study.cards import describe, read_cards, show_interval
from study.entries import read_matrix, strongest
from study.formats import plus_minus, show_accuracy, show_gain
from study.intervals import mean
from study.leaderboard import make_markdown
from study.ledger import Recorded
from study.protocol import paired
from study.report import report
from study.targets import load_table
from training import params
from training.changes import parse_change
from utils.errors import UserError
from utils.keys import TYPE_NAMES, key

NAMES = "leaderboard attacks keys networks any_size equation defence attack datafree trials speed".split()
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks" / "results.jsonl"
# {data: last part of the names of its tables}
SUFFIXES = {"digits": "digits", "CIFAR-10, small networks": "CIFAR10-small"}
OPTIONS = {"num_channels": "channels of the first convolution", "dropout_rate": "dropout before the last layer"}
SIZES_TRIED = (8, 48, 225)  # pixels
LIMITS = {"low": "≥", "above": ">", "high": "≤", "below": "<"}
SPEED = {"images_per_second": ".0f", "reference_images_per_second": ".0f", "ratio": ".2f", "epoch_seconds": ".0f"}
SPEED |= {"loading_percent": ".1f", "peak_percent": ".0f"}


def target(name, *options):
    """A table of experiments/tables.json: the published numbers and the records.

    options: key=value, changed in all runs; "last": with the accuracies of the last epoch.
    """
    changes = dict(map(parse_change, (option for option in options if "=" in option)))
    lines = report(name, "markdown", [Recorded()], common=changes).splitlines()
    lines = [line for line in lines if "last" in options or not line.replace(" ", "").startswith("||last|")]
    table, sentences = ([line for line in lines if line.startswith(start)] for start in ("|", "here"))
    return "\n\n".join(["\n".join(table), *sentences])


def leaderboard(*benchmarks):
    """The cards of benchmarks, as results.py --format markdown prints them."""
    return make_markdown([card for name in benchmarks for card in read_cards(name)], root="../").rstrip()


def attacks(benchmark, preset, defence, *names):
    """The tuned student of each attack that was measured alone, and the difference to that of `kd`."""
    place = preset, defence
    cards = [card for card in read_cards(benchmark, names) if (card["preset"], card["defence"]) == place]
    (kd,) = (card["thief"]["accuracy"] for card in cards if card["attacks"] == ["kd"])
    lines = [
        [
            ", ".join(f"`{name}`" for name in card["attacks"]),
            f"{mean(card['thief']['accuracy']):.2f}",
            show_interval(paired(card["thief"]["accuracy"], kd)),
            f"{mean(card['passive']['accuracy']):.2f}",
            describe(card["thief"]),
        ]
        for card in sorted(cards, key=lambda card: -mean(card["thief"]["accuracy"]))
    ]
    return markdown(lines, ["attack", "tuned", "minus `kd` [95 %]", "not tuned", "chosen settings"])


def keys(name):
    """A table of the keys that a dataclass or a network declares. Keys that all attacks share are left out.

    name: of a network, or of a dataclass with its module, such as "training.params.Common".
    """
    if name in model.names():
        fields = [
            (option, type(value), key(OPTIONS.get(option, f"of `{name}`"), value))
            for option, value in model.options(name).items()
        ]
        declared = dataclasses.make_dataclass("Options", fields)
    else:
        declared = pkgutil.resolve_name(name)
    shared = [field.name for field in dataclasses.fields(Attack.Params)] if declared is not Attack.Params else ()
    lines = [row_of_key(field) for field in dataclasses.fields(declared) if field.name not in shared]
    return markdown(lines, ["key", "type", "default", "allowed", "meaning"])


def row_of_key(field):
    limits = field.metadata
    allowed = [f"{sign} {limits[limit]:g}" for limit, sign in LIMITS.items() if limit in limits]
    allowed += [f"`{choice}`" for choice in limits.get("choices", ())]
    default = "required" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"
    return [f"`{field.name}`", TYPE_NAMES[field.type], default, ", ".join(allowed), limits["about"]]


def networks():
    return ", ".join(f"`{name}`" for name in model.names())


def any_size():
    """The networks that compute logits of images of every size in SIZES_TRIED. The smallest of a family is tried."""
    families = {}
    for name in sorted(model.names(), key=lambda name: (len(name), name)):
        families.setdefault(name.rstrip("0123456789"), []).append(name)
    able = {family for family, names in families.items() if all(takes(names[0], size) for size in SIZES_TRIED)}
    return ", ".join(f"`{name}`" for name in model.names() if name.rstrip("0123456789") in able)


def takes(name, size):
    with torch.device("meta"):
        try:
            network = model.build(name, 7, size).eval()
            return network.head(network.features(torch.empty(2, 3, size, size))).shape == (2, 7)
        except UserError:
            return False


def equation(module):
    """The equation in a module's docstring and the meaning of its symbols: the paragraphs that have columns."""
    paragraphs = importlib.import_module(module).__doc__.split("\n\n")[1:]
    return "\n".join(["```", "\n\n".join(text.strip("\n") for text in paragraphs if "  " in text.strip()), "```"])


@functools.cache
def matrix_of(suffix):
    """A matrix and its recorded entries."""
    matrix = load_table(f"matrix_{suffix}")
    return matrix, read_matrix(matrix, Recorded())


def defence(*words):
    """A defence in the matrices: the accuracy of the teacher, and the gains of `kd` and of the strongest attack.

    words: the name of a row, which may contain spaces.
    """
    lines = []
    for data, suffix in SUFFIXES.items():
        matrix, (_, _, rows) = matrix_of(suffix)
        names = [name for name, _ in matrix.rows]
        number = names.index(" ".join(words))
        epoch, found = matrix.rows[number][1][0].epoch, strongest(matrix, rows)[number]
        (normal, _), (teacher, attacks) = rows[names.index("none")], rows[number]
        best = f"`{found[0]}` {show_gain(found[1])}" if found else "–"
        lines.append([data, show_accuracy(normal), show_accuracy(teacher, epoch), show_gain(attacks[0]), best])
    return markdown(
        lines, ["data", "normal teacher", "this teacher", "student of `kd`", "student of the strongest attack"]
    )


def attack(name):
    """An attack in the matrices: the gains of the students of a normal and of a nasty teacher."""
    lines = []
    for data, suffix in SUFFIXES.items():
        matrix, (_, _, rows) = matrix_of(suffix)
        (_, normal), (_, nasty) = rows[:2]
        number = matrix.columns[1:].index(name)
        lines.append([data, show_gain(normal[number]), show_gain(nasty[number])])
    return markdown(lines, ["data", "student of the normal teacher", "student of the nasty teacher"])


def datafree(column):
    """An attack in the data-free tables: the accuracies of the students of a normal and of a nasty teacher."""
    lines = []
    for data, suffix in SUFFIXES.items():
        entries = json.loads(report(f"datafree_{suffix}", "json", [Recorded()]))
        lines.append([data, *(show_accuracy(entry) for entry in entries if entry["column"] == column)])
    return markdown(lines, ["data", "student of the normal teacher", "student of the nasty teacher"])


def trials(experiment, keys, metric, *students):
    """A table of all recorded settings of a teacher with seed 0.

    A line has the values of `keys`, names separated by commas, the accuracy and `metric` of the teacher, and the best
    accuracy of each of `students`, experiments in the same folder as `experiment`.
    """
    source, folder, names, lines = Recorded(), Path(experiment).parent, keys.split(","), []
    for run in (run.with_seed(0) for run in source.runs_of(experiment)):
        if 0 not in source.histories(run):
            continue
        test, checked = source.histories(run)[0]["test"], vars(params.check(run.raw, experiment))
        best = max(range(len(test["acc"])), key=lambda epoch: (test["acc"][epoch], epoch))
        numbers = [plus_minus(test[term][epoch]) for epoch in (best, -1) for term in ("acc", metric)]
        best_of_students = (student_of(run, str(folder / name), source) for name in students)
        lines.append([*(checked[name] for name in names), *numbers, *best_of_students])
    lines.sort(key=lambda line: line[: len(names)])
    return markdown(lines, [*names, "teacher, best epoch", metric, "last epoch", metric, *students])


def student_of(teacher, experiment, source):
    """The best accuracy of the recorded student of the run `teacher` without changed keys of its own."""
    found = [run for run in source.runs_of(experiment) if not run.changes]
    found = [run.with_seed(0) for run in found if run.with_seed(0).sources["teacher_resume"] == teacher]
    return plus_minus(max(source.histories(found[0])[0]["test"]["acc"])) if found else ""


def speed(*names):
    """Timings in benchmarks/results.jsonl against the reference pipeline.

    names: names of its lines, or name#network for one network of a line.
    """
    measured = {entry["name"]: entry for entry in map(json.loads, BENCHMARKS.read_text(encoding="utf-8").splitlines())}
    lines = []
    for name, _, network in (name.partition("#") for name in names):
        found = [line for line in measured[name]["results"] if network in ("", line["network"])]
        lines += [[line["network"], line["kind"], *(f"{line[k]:{how}}" for k, how in SPEED.items())] for line in found]
    return markdown(lines, ["network", "step", *(name.replace("_", " ") for name in SPEED)])


def markdown(lines, headers):
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)
