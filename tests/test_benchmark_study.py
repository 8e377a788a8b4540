"""The benchmark: search for a thief (the student of an attack), verdicts, cards, and a complete tiny benchmark."""

import itertools
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import KILLS, command, commands, kill_and_restart, start
from projects import copy_code, experiment, grow, metrics, same_weights, set_root, train

from method.attack import Attack
from study import autosteal, benchmark, cards, launch, progress, protocol, report, scoring
from study.cases import ALONE, WITHOUT_TEACHER, Case
from training import experiment as runs
from training import params, spec
from utils import checkpoint
from utils.errors import UserError

STUDENT = {"learning_rate": 0.001, "num_epochs": 9}

# AutoSteal


def test_draws_are_a_function_of_the_seed():
    attacks = {"kd": {}, "htc": {}, "averager": {"seed": 3}}
    one, again, other = (autosteal.draw_thieves(attacks, 9, STUDENT, seed) for seed in (0, 0, 1))
    assert one == again != other and len(one) == 9
    assert one[0] == other[0] == protocol.PASSIVE
    assert autosteal.draw_thieves(attacks, 5, STUDENT, 0) == one[:5]  # more draws do not change the first draws
    assert [drawn["method"] for drawn in one] == ["kd", "htc", "averager"] * 3
    assert [drawn.get("seed") for drawn in one] == [None, None, 3] * 3  # seed is a key of all draws of the third attack


def test_draws_lie_in_the_search_space():
    space = autosteal.space_of("kd")
    assert set(space) == {"temperature", "alpha"} and not set(space) & set(vars(Attack.Params))
    for drawn in autosteal.draw_thieves({"kd": {}}, 40, STUDENT, 0)[1:]:
        assert drawn.keys() == {"method", "temperature", "alpha", "learning_rate"}
        assert all(drawn[name] in values for name, values in space.items())
        assert drawn["learning_rate"] in (0.0005, 0.001, 0.002)


def test_students_without_a_teacher_get_as_many_draws():
    alone, smooth = (autosteal.draw_students(9, STUDENT, 100, smoothing) for smoothing in (False, True))
    assert len(alone) == len(smooth) == 9 and alone[0] == {} and smooth[0] == {"label_smoothing": 0.1}
    assert all(drawn.keys() == {"learning_rate"} for drawn in alone[1:])
    assert all(drawn["label_smoothing"] in protocol.SMOOTHING for drawn in smooth)


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [
        (9, 9, [(9, 3), (3, 9)]),
        (10, 9, [(10, 1), (4, 3), (2, 9)]),
        (27, 90, [(27, 10), (9, 30), (3, 90)]),
        (4, 3, [(4, 1), (2, 3)]),
        (3, 5, [(3, 5)]),
        (1, 5, [(1, 5)]),
        (9, 2, [(9, 1), (3, 2)]),
    ],
)
def test_rungs_by_hand(count, epochs, expected):
    """A third of the draws, rounded up, continues for three times as many epochs. The last step trains all epochs."""
    assert autosteal.rungs(count, epochs) == expected


def test_ties_go_to_the_earlier_draw():
    assert autosteal.ranked({2: 50.0, 0: 50.0, 1: 60.0, 3: 50.0}) == [1, 0, 2, 3]


def test_values_at_the_edge_of_the_space():
    # alpha lies between 0 and 1 by definition, so these values do not count as edges.
    student = {"learning_rate": 0.1}
    assert autosteal.at_edge({"method": "kd", "temperature": 50, "alpha": 1}, student) == ["temperature"]
    assert autosteal.at_edge({"method": "kd", "temperature": 8, "alpha": 0.5, "learning_rate": 0.1}, student) == []
    assert autosteal.at_edge({"method": "kd", "learning_rate": 0.2}, student) == ["learning_rate"]


def test_a_run_until_an_epoch_is_continued_exactly(tmp_path):
    """As in successive halving: training to epoch 2 and then to 5 gives the result of training to 5 at once."""
    keys = {"num_epochs": 5, "schedule": [3], "validation": 0.2, "learning_rate": 0.01}
    whole, cut = (experiment(tmp_path / name, **keys) for name in ("whole", "cut"))
    train(whole)
    for until, epochs in ((2, 2), (1, 2), (5, 5)):
        runs.train(cut, params.load(cut), "", until=until)
        assert len(metrics(cut)) == epochs
    for name in ("best_model.tar", "last_model.tar"):
        assert same_weights(whole / name, cut / name)
    assert metrics(whole) == metrics(cut)


class Here:
    """An executor that trains inside this process."""

    slots = 1

    def __init__(self):
        self.trained, self.ended = [], []

    def start(self, folder, until):
        self.trained.append((folder, until))
        runs.train(launch.from_root(folder), params.load(launch.from_root(folder)), "", until=until)
        self.ended.append((folder, None))

    def wait(self, seconds):
        ended, self.ended = self.ended, []
        return ended


def test_a_runner_stops_where_it_is_told(tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=3, validation=0.2, test_at_end=True)
    run, at_work = spec.make(folder), Here()
    for until, epochs, scored in ((2, 2, False), (2, 2, False), (1, 2, False), (None, 3, True), (None, 3, True)):
        runner = launch.Runner(launch.Plan([run]), {run.folder: until} if until else {})
        runner.run(at_work)
        assert not runner.unfinished() and len(metrics(folder)) == epochs
        assert (folder / "test.json").exists() == scored
    assert [until for _, until in at_work.trained] == [2, 3]
    (folder / "test.json").unlink()  # as if killed between the last epoch and the scoring
    launch.Runner(launch.Plan([run])).run(at_work)
    assert len(at_work.trained) == 3 and (folder / "test.json").exists()


# Verdicts


def test_paired_interval_by_hand():
    """The differences 1, 2, 3 have mean 2 and deviation 1. t is 4.303 for two degrees of freedom."""
    found = protocol.paired([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    half = 4.303 / math.sqrt(3)
    assert (found["mean"], found["n"]) == (2.0, 3)
    assert (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half))
    assert protocol.paired([1.0], [2.0]) == {"mean": -1.0, "low": None, "high": None, "n": 1}
    with pytest.raises(ValueError):
        protocol.paired([1.0], [1.0, 2.0])


def between(low, high):
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": 5}


@pytest.mark.parametrize(
    ("score", "price", "void", "expected"),
    [
        (between(0.1, 2), between(0.8, 1.2), False, "holds"),
        (between(0.1, 2), between(0.9, 1.2), False, "holds, at a price"),
        (between(0.0, 2), between(0, 0.1), False, "does not hold"),
        (between(-3, -1), between(0, 0.1), False, "does not hold"),
        (protocol.interval([5.0]), between(0, 0.1), False, "does not hold"),
        (between(0.1, 2), between(0, 0.1), True, "not shown"),
    ],
)
def test_verdicts(score, price, void, expected):
    assert protocol.verdict(score, price, void) == expected


@pytest.mark.parametrize(
    ("ends", "flags", "verdict"),
    [
        ((None, None), [scoring.ONE_SEED], "not shown"),
        ((-1, 1), [scoring.NO_HELP], "not shown"),
        ((-2, -1), [], "does not hold"),
    ],
)
def test_without_a_gain_from_the_undefended_teacher_nothing_is_shown(ends, flags, verdict, monkeypatch):
    score = dict(zip(("low", "high"), ends, strict=True)) | {"mean": -1.0, "n": 2}
    made = {"defence": "none", "preset": "few", "score": score, "teacher": {"price": between(0, 0)}, "flags": []}
    monkeypatch.setattr(scoring, "make_card", lambda *arguments: made | {"thief": {"accuracy": [1.0, 2.0]}})
    (card,) = scoring.make_cards(SimpleNamespace(presets=["few"], rows=["none"]))
    assert card["flags"] == flags and card["verdict"] == verdict


# Cards


@pytest.fixture
def written(tmp_path, monkeypatch):
    set_root(monkeypatch, tmp_path)
    own = {"preset": "few", "score": {"mean": 0.1 + 0.2}, "commit": "0123456789"}
    made = [{"defence": name} | own for name in ("nasty", "none")]
    cards.write_cards("mine", [card | {"digest": cards.digest(card)} for card in made])
    return tmp_path / "results/mine.cards.jsonl"


def test_cards_of_modified_code_are_not_written(tmp_path, monkeypatch):
    set_root(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="mine: cards not written: nasty: measured with modified code"):
        cards.write_cards("mine", [{"defence": "nasty", "preset": "few", "commit": "0123456789-dirty"}])
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_commit_of_a_card_is_dirty_if_that_of_a_teacher_is(tmp_path, monkeypatch):
    set_root(monkeypatch, tmp_path)
    grow(tmp_path / "experiments/mini", Path("experiments/mini"), num_epochs=1)
    students = [spec.make(f"experiments/mini/{name}/student") for name in ("baseline", "kd_normal")]
    file = {"epoch": 1, "best": (0, 50.0), "params": {}, "optim_dict": {}, "environment": "torch, commit 0123456789"}
    for name, tag in (("baseline/student", ""), ("kd_normal/student", ""), ("baseline/teacher", "-dirty")):
        content = file | {"environment": file["environment"] + tag}
        checkpoint.save(tmp_path / f"experiments/mini/{name}/last_model.tar", content)
    assert scoring.provenance(students[:1]) == {"commit": "0123456789", "environment": "torch, commit 0123456789"}
    assert scoring.provenance(students)["commit"] == "0123456789-dirty"


def test_cards_are_written_and_read(written):
    found = cards.read_cards("mine")
    assert [card["defence"] for card in found] == ["nasty", "none"]
    new = {"defence": "none", "preset": "few", "score": {"mean": 7}, "commit": "0123456789"}
    cards.write_cards("mine", [new | {"digest": cards.digest(new)}])
    assert [card["score"]["mean"] for card in cards.read_cards("mine")] == [0.1 + 0.2, 7]


def test_cards_of_some_defences(written):
    assert [card["defence"] for card in cards.read_cards("mine", rows=["none"])] == ["none"]
    with pytest.raises(UserError, match=r"there are no such cards; .* python reproduce\.py mine --rows stingy$"):
        cards.read_cards("mine", rows=["stingy"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0.30000000000000004", "0.4", "line 1: the card was edited, its digest differs"),
        ('"defence": "nasty"', '"defence": "better"', "line 1: the card was edited, its digest differs"),
        ('"digest": "', '"digest": "0', "line 1: the card was edited, its digest differs"),
        ('"digest"', '"other"', "line 1 is not a card"),
        ("{", "", "line 1 is not a card"),
    ],
)
def test_a_card_edited_by_hand_is_refused(old, new, words, written):
    written.write_text(written.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        cards.read_cards("mine")
    with pytest.raises(UserError, match=words):
        cards.write_cards("mine", [])


def test_no_cards_yet(tmp_path, monkeypatch):
    set_root(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"python reproduce\.py mine"):
        cards.read_cards("mine")


# A benchmark

MINI = {
    "title": "Miniature",
    "source": "nobody, 2031",
    "template": {"defended": "mini/kd_nasty/student", "undefended": "mini/kd_normal/student"},
    "alone": "mini/baseline/student",
    "attacks": {"kd": {}, "htc": {}},
    "more_attacks": {"skeptical": {"kd_delay": 1}},
    "presets": ["insider", "label_only"],
    "draws": 4,
    "seeds": [0, 1],
    "tuning_seed": 103,
    "defences": {
        "none": {"student": "mini/kd_normal/student"},
        "nasty": {"student": "mini/kd_nasty/student", "strengths": {"weight": [0.5, 0.1]}},
        "stingy": {"student": "mini/kd_normal/student", "changes": {"release": "stingy", "rho": 0.2}},
    },
}


def miniature(root):
    """Make a copy of the project with the benchmark `mini`."""
    root.mkdir(exist_ok=True)
    copy_code(root)
    grow(root / "experiments/mini", Path("experiments/mini"), num_epochs=3, batch_size=32)
    (root / "experiments/tables.json").write_text(json.dumps({"mini": MINI}))
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return miniature(tmp_path_factory.mktemp("project"))


@pytest.fixture
def inside(project, monkeypatch):
    set_root(monkeypatch, project)
    return project


def test_runs_of_a_benchmark(inside):
    """Only planned: which runs hold back images, which are scored on test images, and their seeds."""
    mini = benchmark.Benchmark("mini", None)
    assert mini.rows == ["none", "nasty", "stingy"]
    insider, labels = (Case("nasty", preset) for preset in ("insider", "label_only"))
    tuned, final = mini.student(insider, {"alpha": 0.5}, 100), mini.student(labels, {}, 1, final=True)
    assert (tuned.raw["validation"], tuned.raw.get("test_at_end", False), tuned.raw["seed"]) == (0.2, False, 100)
    assert (final.raw["answers"], final.raw["test_at_end"], final.raw["seed"]) == ("label", True, 1)
    for student in (tuned, final):
        teacher = student.sources["teacher_resume"]
        assert teacher.raw["validation"] == 0.1 and teacher.raw["seed"] == student.raw["seed"]
    alone = mini.student(Case(ALONE, "label_only"), {}, 1, final=True)
    assert "answers" not in alone.raw and alone.raw["validation"] == 0.2
    assert mini.teacher("none", 0) == mini.teacher("stingy", 0) != mini.teacher("nasty", 0)
    assert mini.teacher("nasty", 0, {"weight": 0.5}).raw["weight"] == 0.5


@pytest.mark.parametrize(("accuracies", "weight"), [((79, 79), 0.5), ((78.9, 79), 0.1), ((10, 10), 0.1)])
def test_the_largest_strength_within_the_price_is_chosen(accuracies, weight, inside, monkeypatch):
    """The undefended teacher has 80 %. If every strength costs too much, the weakest is chosen."""
    found = {0.5: accuracies[0], 0.1: accuracies[1]}
    monkeypatch.setattr(benchmark, "validation_accuracy", lambda run, epoch: found.get(run.raw.get("weight"), 80))
    executed = []
    mini = benchmark.Benchmark("mini", executed.extend)
    mini.choose_strengths()
    assert mini.chosen_strengths == {"none": {}, "nasty": {"weight": weight}, "stingy": {}}
    assert len(executed) == 3 and all(run.seed == 103 for run, _ in executed)


def test_the_search_halves_by_validation_accuracy(inside, monkeypatch):
    """Here later draws are better at epoch 1. Of the two that continue, the later one is worse at the end."""
    mini, executed, numbers = benchmark.Benchmark("mini", lambda runs: executed.append(runs)), [], {}
    case = Case("none", "insider")
    for number, drawn in enumerate(mini.draws(case)):
        numbers[mini.student(case, drawn, 103).folder] = number
    assert len(numbers) == 4
    monkeypatch.setattr(
        benchmark, "validation_score", lambda run, until=None: numbers[run.folder] * (1 if until == 1 else -1)
    )
    mini.search([case])
    assert [[(numbers[run.folder], until) for run, until in rung] for rung in executed] == [
        [(0, 1), (1, 1), (2, 1), (3, 1)],
        [(3, 3), (2, 3)],
    ]
    assert mini.chosen == {case: mini.draws(case)[2]}


def test_a_setting_that_is_drawn_twice_is_trained_once(inside, monkeypatch):
    """The student alone has three settings, its learning rates. So all three are trained until the end."""
    mini, executed = benchmark.Benchmark("mini", lambda runs: executed.append(runs)), []
    case, repeated = Case(ALONE, "insider"), [{}, {"learning_rate": 0.5}, {"learning_rate": 0.5}, {}]
    monkeypatch.setattr(autosteal, "draw_students", lambda *arguments: repeated)
    monkeypatch.setattr(benchmark, "validation_score", lambda run, until=None: run.raw["learning_rate"])
    mini.search([case])
    assert [[until for _, until in rung] for rung in executed] == [[3, 3]]
    assert mini.chosen == {case: {"learning_rate": 0.5}}


@pytest.mark.parametrize("better", WITHOUT_TEACHER)
def test_the_yardstick_is_the_better_student_without_a_teacher(better, inside):
    mini = benchmark.Benchmark("mini", None)
    mini.scores = {Case(row, "insider"): (80.0, -0.5 if row == better else -0.6) for row in WITHOUT_TEACHER}
    assert mini.yardstick("insider") == Case(better, "insider")


def test_the_score_of_a_run_is_that_of_its_best_epoch(tmp_path, monkeypatch):
    scores = [(50.0, 1.0), (60.0, 0.9), (60.0, 0.8), (40.0, 0.1)]
    lines = [{"validation": {"acc": accuracy, "loss": loss}} for accuracy, loss in scores]
    monkeypatch.setattr(progress, "read_metrics", lambda path: lines)
    run = spec.make(experiment(tmp_path / "x"))
    assert progress.validation_score(run) == (60.0, -0.8) and progress.validation_score(run, until=2) == (60.0, -0.9)
    assert progress.validation_score(run, until=0) < (0.0, 0.0)


def test_mistakes_of_a_benchmark(inside):
    with pytest.raises(UserError, match="unknown preset"):
        benchmark.Benchmark("mini", None, presets=["insidr"])
    with pytest.raises(UserError, match=r'no such defence; .* did you mean "nasty"'):
        benchmark.Benchmark("mini", None, ["nastu"])
    with pytest.raises(UserError, match=r"--columns htd: no such attack; .* did you mean"):
        benchmark.Benchmark("mini", None, replacements={"attacks": ["htd"]})
    with pytest.raises(UserError, match=r"none, no_data: no attack is possible: the preset allows dafl, .* only"):
        benchmark.Benchmark("mini", None, presets=["no_data"], replacements={"attacks": ["htc"]})
    for replaced, words in (
        ({"attacks": []}, '"attacks" of a benchmark must name at least one'),
        ({"seeds": []}, '"seeds" of a benchmark must name at least one'),
        (
            {"changes": {"num_epochs": 1, "validation": 0}},
            '"changes" .* must not have "validation", which the protocol',
        ),
    ):
        with pytest.raises(UserError, match=words):
            benchmark.Benchmark("mini", None, replacements=replaced)
    with pytest.raises(UserError, match="--set: mini is a benchmark, whose cards have no changed keys"):
        report.render("mini", "text", common={"num_epochs": 1})
    assert benchmark.Benchmark("mini", None, presets=["insider"] * 2).presets == ["insider"]
    with pytest.raises(UserError, match='mad: missing key "surrogate_model"'):
        benchmark.Benchmark("mini", None, ["mad"])


@pytest.fixture(scope="module")
def ran(project):
    return command(project, "reproduce.py", "mini", "--jobs", "1", "--rows", "nasty")


@pytest.mark.slow
def test_from_end_to_end(project, ran, inside):
    assert ran.status == 0, ran.err
    found = cards.read_cards("mini")
    assert [(card["defence"], card["preset"]) for card in found] == [
        ("nasty", "insider"), ("nasty", "label_only"), ("none", "insider"), ("none", "label_only"),
    ]  # fmt: skip
    for card in found:
        thief, yardstick = (card[part]["accuracy"] for part in ("thief", "yardstick"))
        assert card["score"] == protocol.paired(yardstick, thief) and card["seeds"] == [0, 1] and len(thief) == 2
        assert (
            card["yardstick"] in (card["alone"], card["label smoothing"]) and card["alone"] != card["label smoothing"]
        )
        assert card["gap"] == protocol.paired(thief, card["passive"]["accuracy"])
        assert card["thief"]["queries"] == 3 * 179  # 224 images minus 45 that are held back
        assert card["verdict"] in ("holds", "holds, at a price", "does not hold", "not shown")
        assert card["thief"]["attack"] in MINI["attacks"] and len(set(card["teacher"]["weights"])) == 2
    nasty, none = found[0], found[2]
    assert nasty["alone"] == none["alone"] and none["teacher"]["price"]["mean"] == none["effect"]["mean"] == 0
    assert nasty["effect"] == protocol.paired(none["thief"]["accuracy"], nasty["thief"]["accuracy"])
    assert nasty["teacher"]["settings"]["weight"] in (0.5, 0.1)


@pytest.mark.slow
def test_tuning_reads_no_test_images(project, ran):
    assert ran.status == 0, ran.err
    checked = 0
    for path in (project / "experiments/mini").rglob("metrics.jsonl"):
        raw = json.loads((path.parent / "params.json").read_text())
        assert all("test" not in line for line in metrics(path.parent))
        complete = len(metrics(path.parent)) == 3
        assert (path.parent / "test.json").exists() == (bool(raw.get("test_at_end")) and complete)
        checked += not complete
    assert checked > 0  # there were draws that did not continue


@pytest.mark.slow
def test_repeated_it_trains_nothing_and_writes_the_same_cards(project, ran):
    assert ran.status == 0, ran.err
    before = (project / "results/mini.cards.jsonl").read_bytes()
    written = {path: path.stat().st_mtime_ns for path in (project / "experiments").rglob("last_model.tar")}
    again, printed = commands(project, "reproduce.py mini --jobs 1 --rows nasty", "results.py mini")
    assert again.status == printed.status == 0, again.err + printed.err
    assert (project / "results/mini.cards.jsonl").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in (project / "experiments").rglob("last_model.tar")} == written
    assert sorted(printed.out.split()) == sorted(again.out.split()) and "nasty" in printed.out


@pytest.mark.slow
def test_selected_attacks_have_cards_of_their_own(project, ran, inside):
    assert ran.status == 0, ran.err
    before = cards.read_cards("mini")
    part = "mini --rows none --presets insider --columns skeptical"
    again, printed = commands(project, f"reproduce.py {part} --jobs 1", "results.py mini --columns skeptical")
    assert again.status == printed.status == 0, again.err + printed.err
    (card,) = cards.read_cards("mini", ["skeptical"])
    assert card["thief"]["attack"] == card["passive"]["attack"] == "skeptical"
    assert card["flags"][0] == 'not the published benchmark: {"attacks": ["skeptical"]}'
    assert again.out.endswith(printed.out) and "skeptical" in printed.out
    assert cards.read_cards("mini") == before


# The same benchmark, but for one preset, by two processes that are killed

PART = ["reproduce.py", "mini", "--rows", "none", "--presets", "insider", "--jobs", "1"]


def cards_of_part(root):
    lines = (root / "results/mini.cards.jsonl").read_bytes().splitlines()
    found = map(json.loads, lines)
    return [
        card for card in found if (card["defence"], card["preset"]) == ("none", "insider") and "attacks" not in card
    ]


def starts(root):
    """{run: number of times that its training began or went on}."""
    return {path.parent.name: path.read_text().count("Environment: ") for path in root.rglob("training.log")}


@pytest.mark.slow
def test_two_processes_killed_at_random_moments_make_the_same_cards(project, ran, tmp_path):
    """Both are killed at the same moment. Without kills, they train no run that one process would not train."""

    def begin():
        both[:] = (start(root, *PART, output=output) for output in outputs)
        return both[0]

    rng, kills, once = random.Random("benchmark"), 0, starts(project)
    for number in itertools.count():
        root, outputs, both = miniature(tmp_path / str(number)), [tmp_path / f"{number}.{i}" for i in range(2)], []
        killed = kill_and_restart(begin, root, rng, KILLS - kills, seconds=3)
        both[1].join()
        assert both[1].exitcode == 0, outputs[1].read_text()
        assert cards_of_part(root) == cards_of_part(project)
        assert len({output.read_text().rpartition("preset  ")[2] for output in outputs}) == 1
        assert all(times <= once[run] + killed for run, times in starts(root).items())
        kills += killed
        if kills == KILLS:
            break
