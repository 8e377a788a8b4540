"""Cards: the result of a defence under a threat preset, as a dictionary for JSON. See docs/benchmark.md."""

import json

from tabulate import tabulate

import method
from study import autosteal
from study.benchmark import ALONE, UNDEFENDED, YARDSTICK, Contest, test_scores
from study.intervals import mean
from study.ledger import read_metrics
from study.protocol import MISSED, VERSION, paired, verdict
from study.publish import file_digest
from utils import checkpoint
from utils.digest import digest
from utils.errors import UserError
from utils.paths import display_path, from_root, write_file

RESULTS = "results"
ONE_CHECKPOINT = "one checkpoint for all seeds: the interval is over students only, and the price is unknown"


def make_cards(benchmark):
    """The cards of a Benchmark that has run."""
    cards = [make_card(benchmark, row, preset) for preset in benchmark.presets for row in benchmark.rows]
    by_place = {(card["defence"], card["preset"]): card for card in cards}
    for card in cards:
        undefended, insider = by_place[UNDEFENDED, card["preset"]], by_place.get((card["defence"], "insider"))
        gain = undefended["score"]["high"]  # of the yardstick over the thief of the undefended teacher
        void = gain is None or gain >= 0
        if void:
            card["flags"].append("the undefended teacher does not help its student either: the preset shows nothing")
        if card["preset"] == "label_only" and insider:
            if mean(card["thief"]["accuracy"]) > mean(insider["thief"]["accuracy"]) + MISSED:
                card["flags"].append("the student is better with labels only than with logits: the search missed one")
        card["verdict"] = verdict(card["score"], card["teacher"]["price"], void)
        card["digest"] = digest(card)
    return cards


def make_card(benchmark, row, preset):
    """A card without its verdict and digest."""
    contest, seeds = Contest(row, preset), benchmark.seeds
    thief, passive = ([benchmark.finals(contest, seed)[name] for seed in seeds] for name in ("thief", "passive"))
    others = {
        name: [benchmark.finals(Contest(name, preset), seed)["thief"] for seed in seeds] for name in (ALONE, YARDSTICK)
    }
    chosen, defence = benchmark.chosen[contest], benchmark.defences[row]
    card = {
        "protocol": VERSION,
        "benchmark": benchmark.name,
        "defence": row,
        "preset": preset,
        "source": defence.get("source"),
        "reported": defence.get("reported"),
        "seeds": seeds,
        "teacher": own_teacher_part(benchmark, row) if row in benchmark.own else teacher_part(benchmark, contest),
        "thief": student_part(chosen, thief)
        | {"agreement": accuracies(thief, "agreement"), "queries": queries(thief[0])},
        "passive": student_part(autosteal.passive(benchmark.attacks(contest)), passive),
        ALONE: student_part(benchmark.chosen[Contest(ALONE, preset)], others[ALONE]),
        YARDSTICK: student_part(benchmark.chosen[Contest(YARDSTICK, preset)], others[YARDSTICK]),
        "score": paired(accuracies(others[YARDSTICK]), accuracies(thief)),
        "gap": paired(accuracies(thief), accuracies(passive)),
        "flags": [f"{name} is left out: {why}" for name, why in benchmark.left_out(contest).items()],
        "draws": benchmark.entry["draws"],
        "records": display_path(file_of(benchmark.name, *benchmark.own.values())),
        **provenance(thief[0]),
    }
    if benchmark.smaller:
        card["flags"].append(f"not the published benchmark: {json.dumps(benchmark.smaller)}")
    if row in benchmark.own:
        card["flags"] += [ONE_CHECKPOINT, *benchmark.own[row].flags]
    edges = [name for name in autosteal.at_edge(chosen) if name in chosen]
    if edges:
        card["flags"].append(f"the thief's {', '.join(edges)} lies at the edge of its search space")
    if not deterministic(benchmark.finals(contest, seeds[0])["thief"]):
        card["flags"].append("equal images are answered differently: averaging may give a stronger attack")
    if sum(still_improving(run) for run in thief) > len(thief) / 2:
        card["flags"].append("students were still improving at their last epoch")
    return card


def teacher_part(benchmark, contest):
    """The accuracy of the teachers' answers, as the passive thief got them, and what the defence costs."""
    row, seeds = contest.opponent, benchmark.seeds
    passive, undefended = (
        [benchmark.finals(Contest(name, contest.preset), seed)["passive"] for seed in seeds]
        for name in (row, UNDEFENDED)
    )
    defence = benchmark.defences[row]
    return {
        "settings": defence.get("changes", {}) | defence.get("teacher_changes", {}) | benchmark.strength[row],
        "accuracy": accuracies(passive, "teacher_acc"),
        "undefended": accuracies(undefended, "teacher_acc"),
        "price": paired(accuracies(undefended, "teacher_acc"), accuracies(passive, "teacher_acc")),
        "weights": [file_digest(from_root(run.raw["teacher_resume"])) for run in passive],
    }


def own_teacher_part(benchmark, row):
    """As `teacher_part`, of one checkpoint for all seeds. It has no undefended twin, so its price is unknown."""
    own = benchmark.own[row]
    return {
        "settings": {"model": own.network},
        "accuracy": [own.accuracy] * len(benchmark.seeds),
        "undefended": None,
        "price": None,
        "weights": [file_digest(from_root(own.file))],
    }


def student_part(settings, runs):
    settings = dict(settings)
    attack = settings.pop("method", "scratch")
    return {"attack": attack, "settings": settings, "accuracy": accuracies(runs)}


def accuracies(runs, term="acc"):
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


def provenance(run):
    environment = checkpoint.load(from_root(run.folder) / "last_model.tar").get("environment", "")
    return {"commit": environment.rpartition("commit ")[2], "environment": environment}


def show(cards, style="simple"):
    """Cards as a table. style: of `tabulate`."""
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
    headers = [
        "preset",
        "defence",
        "score [95 %]",
        "verdict",
        "price",
        "thief",
        "its settings",
        "gap",
        "flags",
    ]
    return tabulate(lines, headers, tablefmt=style, disable_numparse=True)


def show_interval(found):
    if found is None:
        return "unknown"
    if found["low"] is None:
        return f"{found['mean']:+.2f}"
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def describe(part):
    """ "kd, temperature 4, alpha 0.9"."""
    return ", ".join(
        [
            part["attack"],
            *(
                f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in part["settings"].items()
            ),
        ]
    )


def file_of(name, own=None):
    """The file of the cards of a benchmark. own: the user's own teacher, whose cards lie beside its copy."""
    return from_root(own.file).with_name("cards.jsonl") if own else from_root(RESULTS) / f"{name}.cards.jsonl"


def write_cards(name, cards):
    """Write the cards of the benchmark `name`, in place of older ones of the same defence and preset.

    Raises UserError if a card was measured with modified code.
    """
    if modified := [card["defence"] for card in cards if card["commit"].endswith("-dirty")]:
        defences = ", ".join(dict.fromkeys(modified))
        raise UserError(f"{name}: cards not written: {defences}: measured with modified code; commit it and run again")
    kept = {(card["defence"], card["preset"]): card for card in (read_cards(name) if file_of(name).exists() else [])}
    kept |= {(card["defence"], card["preset"]): card for card in cards}
    save(file_of(name), [kept[place] for place in sorted(kept)])


def save(path, cards):
    path.parent.mkdir(exist_ok=True)
    content = "".join(json.dumps(card, ensure_ascii=False) + "\n" for card in cards)
    write_file(path, lambda file: file.write(content.encode()), shared=True)


def read_cards(name):
    """The cards of the benchmark `name`. Raises UserError if there are none, or if one was edited."""
    path = file_of(name)
    if not path.exists():
        raise UserError(f"{display_path(path)}: there is no such file; make it with: python reproduce.py {name}")
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
