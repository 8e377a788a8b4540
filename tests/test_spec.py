"""The identity of a run. Equal runs have equal specs, and different runs have different folders."""

import json
import random
import re

import pytest
from projects import ROOT, experiment, same_weights, train, with_teacher

from training import params, spec
from training.changes import parse_change
from utils.errors import UserError
from utils.paths import read_json

# Values of some keys: several spellings of one value, and strings that are not safe in a folder name.
VALUES = {
    "gamma": [0.5, 0.25, 1, 1.0, 1e-05],
    "batch_size": [16, 64, 100],
    "schedule": [[], [1], [1, 2], [12]],
    "weight_decay": [None, 0, 0.0, 0.1],
    "augmentation": [False, 0, True, 1],
    "resume": [
        None,
        "",
        "null",
        "none",
        "1",
        "a/b",
        "a-b",
        "a,b",
        "a=b",
        "a%2Fb",
        "a+b",
        "a b",
        "a,seed=1",
        "../b",
        "ä",
    ],
}


@pytest.fixture
def student(tmp_path):
    """The experiment of a student. The experiment of its teacher is beside it."""
    teacher = experiment(tmp_path / "teacher")
    return experiment(tmp_path / "student", **with_teacher(teacher))


def random_changes(rng, limit):
    return {name: rng.choice(VALUES[name]) for name in rng.sample(sorted(VALUES), rng.randint(0, limit))}


def random_specs(student, count):
    rng = random.Random(0)
    for _ in range(count):
        changes = random_changes(rng, 3) | ({"seed": rng.randrange(3)} if rng.random() < 0.3 else {})
        seed = rng.choice((None, 0, 1, 2)) if "seed" not in changes else None
        yield spec.make(student, changes, random_changes(rng, 2), random_changes(rng, 1), seed)


def contents(run):
    """All keys of a run and of the runs that it depends on, without the names of their folders."""
    sources = run.sources
    own = {name: value for name, value in run.raw.items() if name not in sources}
    return {"keys": own} | {name: contents(source) for name, source in sources.items()}


def test_different_runs_have_different_folders_and_equal_specs_have_one(student):
    runs, folders = {}, {}
    for run in random_specs(student, 400):
        assert runs.setdefault(run.folder, contents(run)) == contents(run), f"two runs in {run.folder}"
        assert folders.setdefault(run, run.folder) == run.folder, f"two folders for {run}"
    assert len(runs) > 300


def test_folders_are_beside_the_experiment_and_suit_shells_and_file_systems(student):
    for run in random_specs(student, 100):
        name = run.folder.removeprefix(f"{student.parent}/")
        assert name.startswith("student") and re.fullmatch(r"[A-Za-z0-9.,=+%_~-]{7,200}", name)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gamma=1", "gamma=1.0", True),
        ("gamma=0.5", "gamma=5e-1", True),
        ("augmentation=0", "augmentation=false", True),
        ("compile=1", "cuda_graph=true", True),
        ("schedule=[1, 2]", "schedule=[1.0,2]", True),
        ("gamma=0.1", "seed=0", True),  # both values are those of the definition
        ("resume=a/b", "resume=a-b", False),
        ("resume=null", 'resume="null"', False),
        ("schedule=[1, 2]", "schedule=[12]", False),
    ],
)
def test_spellings_of_a_value(one, other, same, student):
    for folder in (student, student.parent / "teacher"):
        a, b = (spec.make(folder, dict([parse_change(text)])) for text in (one, other))
        assert (a == b) is (a.folder == b.folder) is same


def test_a_change_of_a_run_is_a_change_of_its_experiment(student):
    teacher = student.parent / "teacher"
    run = spec.make(teacher, {"gamma": 0.5})
    spec.write(run)
    one, two = spec.make(run.folder, {"schedule": [2]}), spec.make(teacher, {"gamma": 0.5, "schedule": [2]})
    assert (one == two) is (one.folder == two.folder)


def test_json_round_trip(student):
    for run in random_specs(student, 100):
        assert spec.from_json(json.loads(json.dumps(run.to_json()))) == run


@pytest.mark.parametrize("content", [{}, {"experiment": 3, "seed": 0}, {"experiment": "x", "changes": 1, "seed": 0}])
def test_json_that_describes_no_run(content):
    with pytest.raises(UserError, match="not the description of a run"):
        spec.from_json(content)


def test_a_folder_holds_its_spec_and_its_params(student):
    changes = {"gamma": 0.5, "schedule": [1, 2], "resume": "a/b.tar", "weight_decay": None}
    run = spec.make(student, changes, {"batch_size": 8}, {"precision": "bf16"}, seed=2)
    spec.write(run)
    assert spec.of_folder(run.folder) == run and spec.of_folder(student) == spec.make(student)
    loaded = params.load(run.folder)
    assert (loaded.gamma, loaded.schedule, loaded.resume, loaded.seed) == (0.5, [1, 2], "a/b.tar", 2)
    assert (loaded.batch_size, loaded.precision) == (16, "bf16")
    (teacher,) = run.sources.values()
    spec.write(teacher)
    assert loaded.teacher_resume == f"{teacher.folder}/best_model.tar"
    loaded = params.load(teacher.folder)
    assert (loaded.batch_size, loaded.precision, loaded.seed, loaded.gamma) == (8, "bf16", 2, 0.1)


def test_a_run_without_changes_is_the_experiment(student):
    before = (student / "params.json").read_bytes()
    run = spec.make(student, {"gamma": 0.1, "seed": 0}, common={"batch_size": 16}, seed=0)
    spec.write(run)
    assert run == spec.make(student) and ROOT / run.folder == student
    assert sorted(path.name for path in student.iterdir()) == ["params.json"]
    assert (student / "params.json").read_bytes() == before


def test_a_path_with_a_null_character(student):
    with pytest.raises(UserError, match="a path cannot contain a null character"):
        spec.make(student, {"teacher_resume": "x\0/best_model.tar"})


def test_a_common_change_is_named_only_where_it_changes_something(student):
    """`label_smoothing` is a key of the teacher. So the student is another run, although its own keys are the same."""
    assert spec.make(student, common={"gamma": 0.1}) == spec.make(student)
    changed = spec.make(student, common={"gamma": 0.5})
    assert changed != spec.make(student)
    (teacher,) = changed.sources.values()
    assert teacher == spec.make(student.parent / "teacher", {"gamma": 0.5})


def test_a_method_without_a_teacher_has_no_seed_of_a_teacher():
    nasty = "experiments/digits-few/kd_nasty_cnn/nasty_cnn"
    assert spec.make(nasty, {"method": "scratch", "seed": 5}).folder == f"{nasty},method=scratch,seed=5"
    assert spec.make(nasty, {"weight": 0.5, "seed": 5}).folder == f"{nasty},seed=5,teacher.seed=0,weight=0.5"


def test_set_seed_keeps_the_teacher(trained, tmp_path):
    """reproduce.py --seeds 1 also changes the seed of the teacher. So it is another run in another folder."""
    teacher = trained / "baseline/teacher"
    folder = experiment(tmp_path / "x", **with_teacher(teacher))
    train(folder, "--set", "seed=1")
    (made,) = (path for path in tmp_path.iterdir() if path != folder)
    raw = read_json(folder / "params.json")
    assert read_json(made / "params.json") == raw | {"seed": 1}
    assert raw["teacher_resume"] == str(teacher / "best_model.tar")
    train(experiment(tmp_path / "y", **with_teacher(teacher), seed=1))
    assert same_weights(made / "last_model.tar", tmp_path / "y/last_model.tar")
    of_all = spec.make(folder, seed=1)
    assert ROOT / of_all.folder != made and of_all != spec.of_folder(made)
    assert [run.sources["teacher_resume"].seed for run in (of_all, spec.of_folder(made))] == [1, 0]
