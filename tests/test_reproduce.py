"""One command makes a table. Runs are planned, run with two seeds, killed, continued, skipped and printed."""

import csv
import io
import json
import multiprocessing
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import start, unlocked, waited
from projects import (
    ROOT,
    copy_code,
    experiment,
    files,
    grid,
    grow,
    metrics,
    same_weights,
    script,
    set_root,
    train,
    with_teacher,
)

import reproduce as reproduce_script
from study import executors, tables, targets
from study.formats import FORMATS
from study.launch import Plan, Runner
from training import spec
from utils import checkpoint

# {target: number of runs}, counted by hand. A sweep has values × rows, and the networks that no row changes.
RUNS = {
    "table1": 4 + 1 + 8,
    "table1_CIFAR10-30epochs": 4 + 1 + 6,
    "table1_CIFAR10-small": 3 + 1 + 6,
    "table1_digits": 3 + 1 + 4,
    "table1_digits-all-images": 3 + 1 + 6,
    "defences_CIFAR10": 5 + 3 * 6,
    "defences_CIFAR100": 1 + 4 + 3 * 4 + 2 + 3 * 3,
    "stingy_TinyImageNet": 1 + 3,
    "width": 3 * 2 + 1,
    "table2": 3 + (3 + 1 + 3) + 2 * (1 + 4 + 1 + 4),
    "table3": 3 + (3 + 1 + 3) + 2 * (1 + 4 + 1 + 4),
    "table4": 3 + 2 + 4 + 3 * (1 + 4),
    "table5": 4 + 4 + 4 + 2 * 2,
    "table6": 2 * (2 + 2),
    "datafree": 2 * (2 + 2 * 3) + 2,
    "datafree_digits": 2 + 2 * 3,
    "datafree_CIFAR10-small": 2 + 2 * 3,
    "omega": 6 * 5 + 1,
    "omega_digits": 6 * 3 + 1,
    "tau_s": 6 * 14 + 4,
    "alpha": 5 * 8 + 2,
    "samples": 5 * 12 + 2,
    "matrix_CIFAR10": 3 + 7 + 10 * 5,
    "matrix_CIFAR10-small": 3 + 7 + 10 * 5,
    "matrix_digits": 3 + 7 + 10 * 5,
    "matrix": 3 + 7 + 10 * 5,
    "yardstick_digits": 7,
    "yardstick_CIFAR10-small": 7,
    "sdb_digits": 1 + 6 + 6 * 4,
    "sdb_CIFAR10-small": 1 + 4 + 4 * 4,
    "budget_digits": 2 + 9 * 5,
    "frontier_digits": 1 + 6 * 6,
    "adversary": 3 + 2 + 4 + 3 * (1 + 4),
    "students": 4 + 4 + 4 + 2 * 2,
}


def planned(*argv):
    """{experiment: the experiments that it needs} in the order of a dry run, and the last line."""
    done = script("reproduce.py", *argv, "--dry_run")
    assert done.status == 0, done.err
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.out.splitlines()[2:-2]]
    return {row[0]: row[2].split(", ") if len(row) > 2 else [] for row in rows}, done.out.splitlines()[-1]


@pytest.mark.parametrize("target", RUNS)
def test_dry_run_lists_each_run_once_after_what_it_needs(target):
    found, last = planned(target)
    assert len(found) == RUNS[target] and last.startswith(f"{RUNS[target]} runs, ")
    order = list(found)
    assert all(order.index(need) < order.index(run) for run, needs in found.items() for need in needs)


BENCHMARKS = {
    # A teacher is counted for 5 seeds and the tuning seed, and for the latter with each of the 3 strengths of nasty and
    # cmim. Searches and final students are counted for 3 presets. A search trains 9 draws for a third of the epochs,
    # and 3 of them for the rest. The student alone has 3 draws.
    "benchmark_digits": f"{2 * 6 + 2} teachers, {3 * 5} searches of up to 9 draws, {3 * 8 * 5} final students: "
    f"{6 * 15 + 8 * 18 + 3 * (4 * (9 * 10 + 3 * 20) + 3 * 30) + 120 * 30} epochs",
    "benchmark_CIFAR10-small": f"{5 * 6 + 2 * 2} teachers, {3 * 10} searches of up to 9 draws, {3 * 18 * 5} final "
    f"students: {34 * 20 + 3 * (9 * (9 * 5 + 3 * 10) + 3 * 15) + 270 * 15} epochs",
}


@pytest.mark.parametrize("target", BENCHMARKS)
def test_dry_run_of_a_benchmark_is_one_line(target):
    done = script("reproduce.py", target, "--dry_run")
    assert done.status == 0 and done.out.count("\n") == 1 and done.out.endswith(f": {BENCHMARKS[target]}\n")


def test_every_target_is_counted_above():
    assert set(tables.read_targets()) == set(RUNS) | set(BENCHMARKS)
    assert {name for name in tables.read_targets() if targets.is_benchmark(name)} == set(BENCHMARKS)


def test_a_folder_is_all_that_is_in_it():
    below = (ROOT / "experiments/digits").rglob("params.json")
    folders = [path.parent for path in below if not (path.parent / "spec.json").exists()]
    assert sorted(planned("experiments/digits")[0]) == sorted(str(path.relative_to(ROOT)) for path in folders)


def test_seeds_run_beside_the_experiment_with_the_teacher_of_their_own():
    before = {path for path in (ROOT / "experiments").rglob("*,seed=17*")}
    found, _ = planned("table1", "--seeds", "0", "17")
    assert len(found) == 2 * 13
    assert found["experiments/CIFAR10/kd_nasty_resnet18/cnn,seed=17"] == [
        "experiments/CIFAR10/kd_nasty_resnet18/nasty_resnet18,seed=17"
    ]
    assert found["experiments/CIFAR10/kd_normal_resnet18/cnn"] == ["experiments/CIFAR10/baseline/resnet18"]
    assert {path for path in (ROOT / "experiments").rglob("*,seed=17*")} == before


def test_a_key_changed_everywhere():
    found, last = planned("table1", "--set", "precision=bf16", "--seeds", "0", "17")
    assert len(found) == 2 * 13 and last.startswith("26 runs, ")
    assert found["experiments/CIFAR10/kd_nasty_resnet18/cnn,all.precision=bf16,seed=17"] == [
        "experiments/CIFAR10/kd_nasty_resnet18/nasty_resnet18,all.precision=bf16,seed=17"
    ]
    assert found["experiments/CIFAR10/kd_nasty_resnet18/nasty_resnet18,all.precision=bf16"] == [
        "experiments/CIFAR10/baseline/resnet18,precision=bf16"  # it depends on no other run
    ]
    # "digits" is its value already
    assert not any("=" in folder for folder in planned("table1_digits", "--set", "dataset=digits")[0])
    sweep = planned("omega_digits", "--set", "weight_decay=0.01", "num_epochs=1")
    assert (
        sweep[1] == f"{RUNS['omega_digits']} runs, {RUNS['omega_digits']} of them to do: {RUNS['omega_digits']} epochs"
    )
    wrong = script("reproduce.py", "table1", "--set", "precison=bf16", "--dry_run")
    assert wrong.status == 2 and wrong.err.endswith('did you mean "precision"?\n')


def test_a_teacher_from_elsewhere_is_not_trained(tmp_path):
    teacher = experiment(tmp_path / "teacher")
    experiment(tmp_path / "student", **with_teacher(teacher))
    (teacher / "best_model.tar").touch()
    assert planned(tmp_path / "student")[1] == "2 runs, 1 of them to do: 2 epochs"
    (teacher / "params.json").unlink()
    assert planned(tmp_path / "student")[1] == "1 runs, 1 of them to do: 2 epochs"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking
def test_what_fails_is_named_and_the_rest_goes_on(tmp_path):
    root = grow(tmp_path)
    raw = json.loads((root / "kd_nasty/nasty/params.json").read_text())
    (root / "kd_nasty/nasty/params.json").write_text(json.dumps(raw | {"learning_rate": 1e38, "optimizer": "sgd"}))
    done = script("reproduce.py", tmp_path, "--jobs", "2")
    assert done.status == 1
    failed = [line for line in done.err.splitlines() if line.startswith(str(tmp_path))]
    assert len(failed) == 2 and "Traceback" not in done.err
    assert failed[0].startswith(f"{root}/kd_nasty/nasty: failed: Epoch 1/2: the loss is not finite")
    assert failed[1].startswith(f"{root}/kd_nasty/student: skipped, because a run that it needs failed")
    assert [path.parent.name for path in sorted(tmp_path.rglob("last_model.tar"))] == ["student", "teacher", "student"]
    assert re.findall(r": finished \((\d) of 5\)\n", done.out) == ["1", "2", "3"]
    assert "kd_normal/student" in done.out.partition("\n\n")[2]


def test_a_folder_with_another_run_is_named_and_the_rest_goes_on(tmp_path):
    """One run has another learning rate, one the teacher of another seed, and one a damaged folder."""
    root = grow(tmp_path, num_epochs=1)
    assert train(root / "baseline/teacher").status == 0
    (root / "baseline/teacher/params.json").write_text(
        (root / "baseline/teacher/params.json").read_text().replace("0.03", "0.02")
    )
    dry = script("reproduce.py", root, "--dry_run")
    line = f'{root}/baseline/teacher: holds a run with other parameters: "learning_rate": 0.03 in that run, 0.02 now'
    assert dry.status == 0 and line in dry.out and dry.out.endswith("5 runs, 4 of them to do: 4 epochs\n")
    done = script("reproduce.py", root, "--jobs", "1")
    # Only the student alone is finished
    assert done.status == 1 and line in done.err and done.out.count(": finished") == 1
    assert done.err.count("skipped, because a run that it needs failed") == 3

    spec.write(spec.make(root / "kd_normal/student", seed=4))
    file = root / "kd_normal/student,seed=4/params.json"
    file.write_text(file.read_text().replace("baseline/teacher,seed=4", "baseline/student"))
    done = script("reproduce.py", root / "kd_normal", "--seeds", "4", "--jobs", "1")
    assert done.status == 1 and "Traceback" not in done.err
    assert f'student,seed=4: holds a run with other parameters: "teacher_resume": "{root}/baseline/stu' in done.err
    assert (root / "baseline/teacher,seed=4/last_model.tar").exists()


def test_a_student_with_the_teacher_of_another_seed_is_another_run(trained, tmp_path):
    """train_kd.py --set seed=1 keeps the teacher. reproduce.py --seeds 1 also trains a teacher with seed 1."""
    folder = experiment(tmp_path / "x", **with_teacher(trained / "baseline/teacher"))
    train(folder, "--set", "seed=1")
    assert len(metrics(tmp_path / "x,seed=1,teacher.seed=0")) == 2
    found, last = planned(folder, "--seeds", "1")
    assert found[f"{tmp_path}/x,seed=1"] == [f"{trained}/baseline/teacher,seed=1"] and last.startswith("2 runs, 2 of")
    found, last = planned(tmp_path / "x,seed=1,teacher.seed=0")
    assert found[f"{tmp_path}/x,seed=1,teacher.seed=0"] == [f"{trained}/baseline/teacher"] and "0 epochs" in last
    assert len(grid(script("results.py", tmp_path / "x,seed=1,teacher.seed=0", "--format", "markdown").out)) == 3
    _, last = planned(tmp_path / "x,seed=1,teacher.seed=0", "--set", "gamma=0.5")
    assert last.startswith("2 runs, 2 of")


def conflict(folder, **changes):
    """The conflict that a plan reports for `folder` if these keys are changed in its params.json."""
    file = folder / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return Plan([spec.make(folder)]).conflict(str(folder))


def test_what_is_no_conflict(tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=1, precision="auto")
    assert conflict(folder) is None
    train(folder)
    assert conflict(folder) is None  # although the run has replaced "auto" by a value
    assert conflict(folder, momentum=0.9, label_smoothing=0) is None  # these are the defaults
    assert conflict(folder, num_epochs=2) is None
    state = torch.load(folder / "last_model.tar", weights_only=True)
    state["params"].pop("cuda_graph")  # as if the key had been added after the run
    checkpoint.save(folder / "last_model.tar", state)
    assert conflict(folder) is None
    assert conflict(folder, precision="bf16" if state["params"]["precision"] == "fp32" else "fp32") is not None
    assert '"seed": 0 in that run, 3 now' in conflict(folder, seed=3)


def test_runs_with_changed_keys_go_on_when_the_experiment_grows(tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=1)
    for epochs in 1, 2:
        assert conflict(folder, num_epochs=epochs, momentum=0.9) is None  # first a default, and now in the file
        assert script("reproduce.py", folder, "--seeds", "1", "--set", "gamma=0.2", "--jobs", "1").status == 0
        assert len(metrics(tmp_path / "x,gamma=0.2,seed=1")) == epochs
    done = script("reproduce.py", folder, "--jobs", "1")  # the table has only the runs of this folder
    assert done.status == 0 and "gamma=" not in done.out and "gamma=" in script("results.py", folder).out
    raw = tmp_path / "x,gamma=0.2,seed=1/params.json"
    raw.write_text(raw.read_text().replace("0.03", "0.02"))
    plan = Plan([spec.make(folder, {"gamma": 0.2}, seed=1)])
    assert '"learning_rate": 0.02 in that run' in plan.conflict(f"{tmp_path}/x,gamma=0.2,seed=1")
    raw.write_text("{")
    assert "line 1, column 2" in plan.conflict(f"{tmp_path}/x,gamma=0.2,seed=1")


def test_a_student_that_has_the_change_already_is_another_with_a_changed_teacher(tmp_path):
    root = grow(tmp_path)
    file = root / "kd_normal/student/params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"momentum": 0.8}))
    found, _ = planned(root / "kd_normal", "--set", "momentum=0.8")
    student = f"{root}/kd_normal/student,all.momentum=0.8"
    assert found == {f"{root}/baseline/teacher,momentum=0.8": [], student: [f"{root}/baseline/teacher,momentum=0.8"]}
    assert not any("=" in folder for folder in planned(root / "kd_normal", "--set", "precision=fp32")[0])


def test_however_a_teacher_is_spelt_it_is_waited_for(tmp_path):
    root = grow(tmp_path / "real", named=tmp_path / "real/kd_normal/..")
    (tmp_path / "link").symlink_to(root)
    for path in root, tmp_path / "link":
        found, _ = planned(path)
        assert len(found) == 5 and found[f"{root}/kd_normal/student"] == [f"{root}/baseline/teacher"]


@pytest.mark.parametrize("name", ["temperature", "method", "model_name", "seed", "teacher_resume"])
def test_only_what_all_runs_share_can_be_changed_in_all(name):
    for command in "reproduce.py", "results.py":
        done = script(command, "table1", "--set", f"{name}=1")
        assert done.status == 2 and f"--set {name}: cannot be changed in all runs; allowed are dataset, " in done.err
        assert ("--seeds" in done.err) == (name == "seed")


def test_a_folder_whose_own_name_has_an_equals_sign(tmp_path):
    for name in "lr=0.1", "other", "other,seed=2":
        experiment(tmp_path / name)
    spec.write(spec.make(tmp_path / "other", seed=1))  # a folder with a spec.json is not an experiment
    assert set(planned(tmp_path)[0]) == {f"{tmp_path}/{name}" for name in ("lr=0.1", "other", "other,seed=2")}


def test_folders_are_looked_for_here_and_then_in_the_project(tmp_path, monkeypatch):
    experiment(tmp_path / "été 1/x")
    monkeypatch.chdir(tmp_path)
    assert set(planned("été 1")[0]) == {f"{tmp_path}/été 1/x"}
    assert len(planned("experiments/digits")[0]) == 10


def test_metrics_of_an_earlier_run_are_no_progress(tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=3)
    (folder / "metrics.jsonl").write_text("{}\n" * 3)
    at_work, seen = Runner(Plan([spec.make(folder)])), []

    class Slow:
        slots = 1

        def start(self, _, until):
            self.waits = 0

        def wait(self, seconds):
            self.waits += 1
            if self.waits == 2:
                (folder / "metrics.jsonl").write_text("{}\n")
            seen.append(at_work.done[str(folder)])
            return [(str(folder), None)] if self.waits == 4 else []

    at_work.run(Slow())
    assert seen == [0, 0, 1, 1] and at_work.done[str(folder)] == 3


# The miniature: a copy of the project with its own experiments

TABLE = {
    "title": "Miniature",
    "source": "nobody, 2021",
    "columns": ["teacher", "student"],
    "rows": [
        {"name": "student baseline", "cells": [None, ["mini/baseline/student", 50.0]]},
        {"name": "normal", "cells": [["mini/baseline/teacher", 50.0], ["mini/kd_normal/student", 50.0]]},
        {"name": "nasty", "cells": [["mini/kd_nasty/nasty", 50.0], ["mini/kd_nasty/student", 50.0]]},
    ],
}
SWEEP = {
    "title": "Weight",
    "source": "nobody, 2021",
    "key": "weight",
    "values": [0, 0.1],
    "rows": [{"name": "student", "experiment": "mini/kd_nasty/student", "change": "teacher"}],
}
NEW_METHOD = '''"""A paper of tomorrow, 2031: min_s CE(t(x), s(x))"""

from method.attack.kd import KD


class Copycat(KD):
    def losses(self, images, labels):
        return super().losses(images, self.teacher(images).argmax(1))
'''


@pytest.mark.parametrize(("flags", "jobs"), [([], 1), (["--jobs", "3"], 3)])
def test_runs_per_gpu_on_a_ray_cluster(flags, jobs, monkeypatch):
    """The default does not depend on the GPUs and cores of the machine that starts the runs."""
    monkeypatch.setattr(reproduce_script, "Ray", lambda address, jobs, *more: jobs)
    monkeypatch.setattr("sys.argv", ["reproduce.py", "table1", "--ray", *flags])
    assert reproduce_script.executor(reproduce_script.arguments()) == jobs


def test_one_seed_for_all_teachers(tmp_path, monkeypatch):
    set_root(monkeypatch, tmp_path)
    grow(tmp_path / "experiments/mini", Path("experiments/mini"))
    (tmp_path / "experiments/tables.json").write_text(json.dumps({"mini": TABLE | {"teacher_seed": 3}}))
    alone, teacher, student, nasty, nasty_student = targets.specs_of("mini", 1)
    assert [run.seed for run in (alone, teacher, student, nasty, nasty_student)] == [1, 3, 1, 3, 1]
    assert student.sources["teacher_resume"] == teacher and nasty_student.sources["teacher_resume"] == nasty
    assert nasty.sources["adversarial_resume"] == teacher
    assert [run.seed for run in targets.specs_of("mini")] == [0, 3, 0, 3, 0]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = copy_code(tmp_path_factory.mktemp("project"))
    mini = grow(root / "experiments/mini", Path("experiments/mini"))
    experiment(root / "experiments/endless", num_epochs=100_000)
    (root / "method/attack/copycat.py").write_text(NEW_METHOD)
    own = with_teacher(Path("experiments/mini/baseline/teacher"), method="copycat")
    experiment(mini.parent / "new/student", **own)
    (mini.parent / "tables.json").write_text(json.dumps({"mini": TABLE, "sweep": SWEEP}))
    return root


def reproduce(project, *argv):
    (project / "output").write_text("")
    return start(project, "reproduce.py", *argv, "--jobs", "2", output=project / "output")


@pytest.fixture(scope="module")
def killed(project):
    """The miniature and an endless experiment, killed after this one has begun and another run has finished."""
    process, endless = reproduce(project, "experiments/endless", "mini"), project / "experiments/endless"
    begun = (endless / "training.log").exists
    assert waited(lambda: "finished" in (project / "output").read_text() and begun()), (project / "output").read_text()
    process.kill()
    process.join()
    yield endless
    shutil.rmtree(endless, ignore_errors=True)  # a run that still trains ends, because it cannot write


def test_killed_with_its_children(killed):
    """The runs of a killed `reproduce.py` end with it, so that the same command can continue them."""
    assert waited(lambda: unlocked(killed), seconds=10)


@pytest.fixture(scope="module")
def finished(project, killed):
    """The same command without a kill, with two seeds, a sweep and a new method. Returns its output."""
    process = reproduce(project, "mini", "sweep", "experiments/new", "--seeds", "0", "1")
    process.join(timeout=500)
    output = (project / "output").read_text()
    assert process.exitcode == 0, output
    return output


@pytest.fixture
def inside(project, finished, monkeypatch):
    """Make the miniature the project root of this process."""
    set_root(monkeypatch, project)
    return project / "experiments/mini"


def test_it_went_on_after_the_kill_and_ended_in_the_table(project, finished):
    folders = sorted(path.parent for path in (project / "experiments").rglob("last_model.tar"))
    runs = [str(path.relative_to(project / "experiments")) for path in folders if path.name != "endless"]
    seeds = ["", ",seed=1"]
    assert sorted(runs) == sorted(
        [f"mini/baseline/{name}{seed}" for name in ("student", "teacher") for seed in seeds]
        + [f"mini/kd_normal/student{seed}" for seed in seeds]
        + [f"mini/kd_nasty/{name}{seed}" for name in ("nasty", "student") for seed in seeds]
        + [f"mini/kd_nasty/nasty{seed},weight=0" for seed in seeds]
        + [f"mini/kd_nasty/student{seed},teacher.weight=0" for seed in seeds]
        + [f"new/student{seed}" for seed in seeds]
    )
    assert all(len(metrics(folder)) == 2 for folder in folders if folder.name != "endless")
    assert "Miniature" in finished and "n=2" in finished and "Traceback" not in finished


def test_seeds_are_paired(inside):
    for kind, teacher in (("kd_normal", "baseline/teacher"), ("kd_nasty", "kd_nasty/nasty")):
        for seed in ("", ",seed=1"):
            state = torch.load(inside / f"{kind}/student{seed}/last_model.tar", weights_only=True)
            assert list(state["origins"]) == [f"experiments/mini/{teacher}{seed}/best_model.tar"]
            assert state["params"]["seed"] == (1 if seed else 0)


def test_runs_are_what_the_scripts_give(inside, trained):
    for name in ("baseline/teacher", "baseline/student", "kd_normal/student", "kd_nasty/nasty", "kd_nasty/student"):
        assert same_weights(inside / name / "best_model.tar", trained / name / "best_model.tar")
        assert not same_weights(inside / name / "last_model.tar", inside / f"{name},seed=1/last_model.tar")


def test_running_it_again_changes_nothing(inside):
    before = files(inside)
    assert planned("mini", "sweep", "--seeds", "0", "1")[1] == "14 runs, 0 of them to do: 0 epochs"
    done = script("reproduce.py", "mini", "sweep", "--seeds", "0", "1")
    assert done.status == 0 and "n=2" in done.out and "running" not in done.out
    assert files(inside) == before


@pytest.mark.parametrize("style", FORMATS)
def test_its_table_in_every_format(inside, style):
    done = script("results.py", "mini", "--format", style)
    assert done.status == 0, done.err
    best = [max(line["test"]["acc"] for line in metrics(inside / f"kd_nasty/student{s}")) for s in ("", ",seed=1")]
    mean = sum(best) / 2
    if style in ("json", "csv"):
        found = json.loads(done.out) if style == "json" else list(csv.DictReader(io.StringIO(done.out)))
        entry = next(e for e in found if (e["row"], e["column"], e["source"]) == ("nasty", "student", "yours"))
        assert float(entry["best"]) == pytest.approx(mean) and int(entry["n"]) == 2
        assert float(entry["best_sd"]) == pytest.approx(abs(best[0] - best[1]) / 2**0.5)
    else:
        assert f"{mean:.2f} ± {abs(best[0] - best[1]) / 2**0.5:.2f}" in done.out


def test_the_sweep_has_a_column_for_each_value(inside):
    found = json.loads(script("results.py", "sweep", "--format", "json").out)
    found = [entry for entry in found if entry["source"] == "yours"]
    assert [(entry["column"], entry["n"]) for entry in found] == [("weight 0", 2), ("weight 0.1", 2)]
    paths = [entry["experiment"] for entry in found]
    assert paths == ["mini/kd_nasty/student,teacher.weight=0", "mini/kd_nasty/student"]
    weight = json.loads((inside / "kd_nasty/nasty,weight=0/params.json").read_text())["weight"]
    assert weight == 0


def test_one_file_makes_a_method(inside):
    state = torch.load(inside.parent / "new/student/last_model.tar", weights_only=True)
    assert state["params"]["method"] == "copycat"
    assert not same_weights(inside.parent / "new/student/last_model.tar", inside / "kd_normal/student/last_model.tar")


def test_waiting_for_another_process_takes_time(monkeypatch):
    slept = []
    monkeypatch.setattr(executors.time, "sleep", slept.append)
    assert executors.InProcess("data").wait(1) == [] and slept == [1]


def test_an_idle_worker_that_was_killed_is_replaced(monkeypatch):
    (killed, its_end), (own_end, new_end) = multiprocessing.Pipe(), multiprocessing.Pipe()
    its_end.close()
    workers = executors.Processes(1, "data")
    workers.idle = [(SimpleNamespace(is_alive=lambda: False), killed, None)]
    monkeypatch.setattr(workers, "new_worker", lambda: (None, own_end, None))
    workers.start("x")
    assert new_end.recv() == ("x", None) and workers.idle == []


def test_threads_of_a_run(monkeypatch):
    monkeypatch.setattr(executors.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert executors.Processes(4, "data").threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert executors.Processes(4, "data").threads == 1
