"""Makes the cards of a benchmark: scores, prices, verdicts and flags. See docs/benchmark.md.

Accuracies are in percent of the test images, with one number for each seed. `mean`, `low` and `high` of an interval are
in percentage points.
"""

import json

import method
from study import autosteal
from study.cards import cards_path
from study.cases import ALONE, SMOOTHED, UNDEFENDED, WITHOUT_TEACHER, Case
from study.intervals import mean
from study.launch import Plan
from study.progress import read_metrics, test_scores
from study.protocol import MISSED, VERSION, paired, verdict
from study.publish import digest_of_weights
from utils import checkpoint
from utils.digest import digest
from utils.paths import display_path, from_root

NO_HELP = "the undefended teacher does not help its student either: the preset shows nothing"
ONE_SEED = "there is one seed only, so it is unknown whether the undefended teacher helps its student"
ONE_CHECKPOINT = "one checkpoint for all seeds: the interval is over students only, and the price is unknown"


def make_cards(benchmark):
    """The cards of a Benchmark whose runs have finished, a list of dictionaries for JSON."""
    cards = [make_card(benchmark, row, preset) for preset in benchmark.presets for row in benchmark.rows]
    card_of = {(card["defence"], card["preset"]): card for card in cards}
    for card in cards:
        undefended, insider = card_of[UNDEFENDED, card["preset"]], card_of.get((card["defence"], "insider"))
        card["effect"] = paired(undefended["thief"]["accuracy"], card["thief"]["accuracy"])
        upper = undefended["score"]["high"]  # upper end of: yardstick minus the student of the undefended teacher
        void = upper is None or upper >= 0
        if void:
            card["flags"].append(ONE_SEED if upper is None else NO_HELP)
        if card["preset"] == "label_only" and insider:
            if mean(card["thief"]["accuracy"]) > mean(insider["thief"]["accuracy"]) + MISSED:
                card["flags"].append("the student is better with labels only than with logits: the search missed one")
        card["verdict"] = verdict(card["score"], card["teacher"]["price"], void)
        card["digest"] = digest(card)
    return cards


def make_card(benchmark, row, preset):
    """The card of the defence `row` under a preset, without its verdict and digest."""
    case, seeds = Case(row, preset), benchmark.seeds
    thief, passive = finals_of(benchmark, case), finals_of(benchmark, case, "passive")
    others = {name: finals_of(benchmark, Case(name, preset)) for name in WITHOUT_TEACHER}
    yardstick = benchmark.yardstick(preset)
    chosen, defence, attacks = benchmark.chosen[case], benchmark.defences[row], benchmark.replacements.get("attacks")
    return {
        "protocol": VERSION,
        "benchmark": benchmark.name,
        "defence": row,
        "preset": preset,
        "source": defence.get("source"),
        "reported": defence.get("reported"),
        "seeds": seeds,
        "teacher": own_teacher_part(benchmark, row) if row in benchmark.own else teacher_part(benchmark, case),
        "thief": student_part(chosen, thief)
        | {"agreement": accuracies(thief, "agreement"), "queries": queries(thief[0])},
        "passive": student_part(autosteal.passive(benchmark.attacks(case)), passive),
        **{name: student_part(benchmark.chosen[Case(name, preset)], others[name]) for name in WITHOUT_TEACHER},
        "yardstick": student_part(benchmark.chosen[yardstick], others[yardstick.row]),
        "score": paired(accuracies(others[yardstick.row]), accuracies(thief)),
        "gap": paired(accuracies(thief), accuracies(passive)),
        "flags": flags_of(benchmark, case, thief),
        "draws": benchmark.entry["draws"],
        "records": display_path(cards_path(benchmark.name, next(iter(benchmark.own.values()), None))),
        **({"attacks": attacks} if attacks else {}),
        **provenance([*thief, *passive, *others[ALONE], *others[SMOOTHED]]),
    }


def finals_of(benchmark, case, name="chosen"):
    """The final runs of a case, one per seed. name: "chosen" or "passive"."""
    return [benchmark.finals(case, seed)[name] for seed in benchmark.seeds]


def flags_of(benchmark, case, thief):
    """The flags of a card that depend on its defence and its thief only. thief: the runs of the thief, one per seed."""
    row, chosen = case.row, benchmark.chosen[case]
    flags = [f"{name} is left out: {why}" for name, why in benchmark.left_out(case).items()]
    if benchmark.replacements:
        flags.append(f"not the published benchmark: {json.dumps(benchmark.replacements)}")
    if row in benchmark.own:
        flags += [ONE_CHECKPOINT, *benchmark.own[row].flags]
    if edges := autosteal.at_edge(chosen, benchmark.student(case, {}, benchmark.tuning_seed).raw):
        flags.append(f"values at the edge of the search space: {', '.join(edges)}")
    if not deterministic(thief[0]):
        flags.append("equal images are answered differently: averaging may give a stronger attack")
    if sum(still_improving(run) for run in thief) > len(thief) / 2:
        flags.append("students were still improving at their last epoch")
    return flags


def teacher_part(benchmark, case):
    """The item "teacher" of a card, with the accuracy of the teacher's answers to the passive thief, and the price."""
    row = case.row
    passive, undefended = (finals_of(benchmark, Case(name, case.preset), "passive") for name in (row, UNDEFENDED))
    defence = benchmark.defences[row]
    return {
        "settings": defence.get("changes", {}) | defence.get("teacher_changes", {}) | benchmark.chosen_strengths[row],
        "accuracy": accuracies(passive, "teacher_acc"),
        "undefended": accuracies(undefended, "teacher_acc"),
        "price": paired(accuracies(undefended, "teacher_acc"), accuracies(passive, "teacher_acc")),
        "weights": [digest_of_weights(from_root(run.raw["teacher_resume"])) for run in passive],
    }


def own_teacher_part(benchmark, row):
    """Like `teacher_part`, for the user's checkpoint, which is the same for all seeds.

    The price is unknown, because no undefended teacher was trained in the same way.
    """
    own = benchmark.own[row]
    return {
        "settings": {"model": own.network},
        "accuracy": [own.accuracy] * len(benchmark.seeds),
        "undefended": None,
        "price": None,
        "weights": [digest_of_weights(from_root(own.file))],
    }


def student_part(settings, runs):
    """The part of a card about a student: attack, settings, and an accuracy for each of `runs`."""
    settings = dict(settings)
    attack = settings.pop("method", "scratch")
    return {"attack": attack, "settings": settings, "accuracy": accuracies(runs)}


def accuracies(runs, term="acc"):
    """A term of test.json for each of `runs`, such as "acc" or "agreement"."""
    return [test_scores(run)[term] for run in runs]


def queries(run):
    """The number of images that the teacher answered during a run."""
    return sum(epoch.get("queries", 0) for epoch in read_metrics(from_root(run.folder) / "metrics.jsonl"))


def still_improving(run):
    """Whether the last epoch of a run has a higher validation accuracy than all epochs before."""
    *before, last = (epoch["validation"]["acc"] for epoch in read_metrics(from_root(run.folder) / "metrics.jsonl"))
    return last > max(before, default=0)


def deterministic(run):
    """Whether the release rule gives equal answers to equal images."""
    return method.find_release(run.raw.get("release", "logits")).deterministic


def provenance(runs):
    """The commit and the environment of the first of `runs`, from its checkpoint.

    The commit ends in "-dirty" if that of any of `runs` does, or that of a run whose checkpoint they load.
    """
    environment = checkpoint.load(from_root(runs[0].folder) / "last_model.tar").get("environment", "")
    commit = environment.rpartition("commit ")[2].removesuffix("-dirty")
    states = (checkpoint.peek(from_root(folder) / "last_model.tar") for folder in Plan(runs).runs)
    modified = any(state.get("environment", "").endswith("-dirty") for state in states)
    return {"commit": f"{commit}-dirty" if modified else commit, "environment": environment}
