"""Records, the lines of results/*.jsonl, and `results.py --publish`, which writes them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from projects import ROOT, SCRIPTS, TINY, grow, script, set_root, train

from study import ledger, report
from study.ledger import Recorded
from training import params, spec
from training.changes import differences_to_run
from utils import checkpoint
from utils.paths import read_json

LINES = [
    (path.name, number, json.loads(line))
    for path in sorted((ROOT / "results").glob("*.jsonl"))
    if not path.name.endswith(".cards.jsonl")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
]


def test_records_are_of_experiments_that_exist_and_each_of_another_run():
    folders = set()
    for name, number, record in LINES:
        where = f"results/{name}, line {number}"
        run = spec.from_json(record)
        assert ledger.records_file(run.experiment).name == name, where
        assert (ROOT / run.experiment / "params.json").is_file(), where
        assert run == spec.make(run.experiment, *map(dict, (run.changes, run.teacher_changes, run.common)), run.seed)
        assert run.folder not in folders, where
        folders.add(run.folder)
    assert len(folders) == len(LINES) > 0


def test_records_hold_what_their_definition_says():
    """The parameters of a record are those of its params.json, so no definition was changed after its runs."""
    for name, number, record in LINES:
        ran, wanted = (vars(params.check(raw, Path(name))) for raw in (record["params"], spec.from_json(record).raw))
        assert differences_to_run(ran, wanted) == [], f"results/{name}, line {number}"


def test_records_agree_with_themselves():
    for name, number, record in LINES:
        where = f"results/{name}, line {number}"
        part = ledger.scored_part(record)
        accuracies = record[part]["acc"]
        assert len(accuracies) == record["epochs"] and all(0 <= accuracy <= 100 for accuracy in accuracies), where
        assert (record["best"], record["last"]) == (max(accuracies), accuracies[-1]), where
        lengths = {len(values) for values in (*record["train"].values(), *record[part].values())}
        assert lengths == {record["epochs"]}, where
        assert record["epochs"] == record.get("planned_epochs", record["params"]["num_epochs"]) or (
            record["epochs"] < record["planned_epochs"]
        ), where


def test_every_run_of_a_file_is_found_in_it():
    runs = {}
    for _, _, record in LINES:
        runs.setdefault(spec.from_json(record).any_seed, {})[record["seed"]] = record
    for run, seeds in runs.items():
        [part] = {ledger.scored_part(record) for record in seeds.values()}
        assert Recorded().histories(run, part).keys() == seeds.keys()


# Publishing

ENVIRONMENT = "Python 3, torch 2, x86_64 CPU, 1 threads, fp32, commit 0123456789"
STUDENT = "experiments/mini/kd_normal/student"


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A project root with the five trained experiments, as if they had been trained at a commit."""
    set_root(monkeypatch, tmp_path)
    root = tmp_path / "experiments/mini"
    grow(root, Path("experiments/mini"))
    for folder in root.glob("*/*"):
        source = trained / folder.relative_to(root)
        for name in ("metrics.jsonl", "last_model.tar", "best_model.tar"):
            shutil.copy(source / name, folder)
        raw = read_json(folder / "params.json")
        change(folder, environment=ENVIRONMENT, params=vars(params.check(raw, folder)))
    (tmp_path / "experiments/tables.json").write_text("{}")
    return root


def change(folder, **values):
    """Change entries of last_model.tar in `folder`."""
    state = torch.load(folder / "last_model.tar", weights_only=True)
    checkpoint.save(folder / "last_model.tar", state | values)


def records(project):
    path = project.parents[1] / "results/mini.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_published_record_is_read_back(project):
    done = script("results.py", "experiments/mini", "--publish")
    assert done.status == 0 and done.out.count("results/mini.jsonl: added: ") == 5, done.err
    found = {record["experiment"]: record for record in records(project)}
    lines = [json.loads(line) for line in (project / "kd_normal/student/metrics.jsonl").read_text().splitlines()]
    accuracies, record = [line["test"]["acc"] for line in lines], found[STUDENT]
    assert record["test"]["acc"] == accuracies and record["seed"] == 0
    assert record["train"]["loss"] == pytest.approx([line["train"]["loss"] for line in lines], rel=1e-5)
    assert (record["commit"], record["environment"]) == ("0123456789", ENVIRONMENT)
    assert record["command"].startswith("python train_kd.py --save_path ")
    assert record["params"]["num_channels"] == TINY["num_channels"] and len(record["loaded"]) == 1
    teacher = found["experiments/mini/baseline/teacher"]["weights"]
    assert len(teacher["best_model.tar"]) == 16 and record["weights"]["best_model.tar"] != teacher["best_model.tar"]

    summary = Recorded().summary(spec.make(STUDENT))
    assert (summary.best, summary.last, summary.unfinished) == ({0: max(accuracies)}, {0: accuracies[-1]}, [])
    lines = json.loads(report.report(STUDENT, "json"))
    here, yours = ({k: v for k, v in line.items() if k != "source"} for line in lines)
    assert here == yours and [line["source"] for line in lines] == ["here", "yours"]


def test_publishing_again_replaces_the_older_record_of_the_same_run(project):
    script("results.py", STUDENT, "--publish")
    assert "unchanged: " in script("results.py", STUDENT, "--publish").out
    for name in ("metrics.jsonl", "last_model.tar", "best_model.tar"):
        (project / "kd_normal/student" / name).unlink()
    train(project / "kd_normal/student")
    change(project / "kd_normal/student", environment=ENVIRONMENT.replace("0123456789", "abcdef0123"))
    assert "results/mini.jsonl: replaced: " in script("results.py", STUDENT, "--publish").out
    (record,) = records(project)
    assert record["commit"] == "abcdef0123"
    run = spec.make(STUDENT, seed=1)
    spec.write(run)
    assert "unchanged" in script("results.py", STUDENT, "--publish").out  # nothing has run with seed 1
    assert len(records(project)) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"environment": f"{ENVIRONMENT}-dirty"}, "ran with modified code (0123456789-dirty)"),
        ({"environment": ENVIRONMENT.replace("0123456789", "unknown")}, "ran outside of a git repository"),
    ],
)
def test_a_run_of_modified_code_is_refused(values, words, project):
    change(project / "kd_normal/student", **values)
    done = script("results.py", "experiments/mini", "--publish")
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1
    assert done.err.startswith(f"{STUDENT}: ")
    written = {record["experiment"] for record in records(project)}
    assert written == {f"experiments/mini/{name}" for name in SCRIPTS} - {STUDENT}  # the other runs


def test_a_run_whose_definition_was_changed_is_refused(project):
    file = project / "kd_normal/student/params.json"
    file.write_text(file.read_text().replace("0.9", "0.8"))
    done = script("results.py", STUDENT, "--publish")
    assert done.status == 2 and 'not those of its definition: "alpha": 0.9 in that run, 0.8 now' in done.err
    assert not records(project)


def test_runs_with_changed_keys_are_published_by_their_name(project):
    run = spec.make(STUDENT, {"alpha": 0.5})
    spec.write(run)
    assert "alpha" not in script("results.py", "experiments/mini").out  # it has not begun
    train(project / "kd_normal/student,alpha=0.5")
    change(project / "kd_normal/student,alpha=0.5", environment=ENVIRONMENT)
    hint = f"{STUDENT},alpha=0.5: has changed keys; name its folder to publish it\n"
    assert script("results.py", "experiments/mini", "--publish").out.endswith(hint)
    assert f"added: {STUDENT},alpha=0.5, seed 0, best " in script("results.py", run.folder, "--publish").out
    assert [record["changes"] for record in records(project) if "changes" in record] == [{"alpha": 0.5}]


def test_an_unfinished_run_is_no_record(project):
    file = project / "kd_normal/student/params.json"
    file.write_text(file.read_text().replace('"num_epochs": 2', '"num_epochs": 3'))
    done = script("results.py", STUDENT, "--publish")
    assert (done.status, done.out) == (0, f"{STUDENT}: no finished run on this machine\n") and not records(project)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"experiment": "experiments/mini/baseline/student", "seed": 0, "test": {"acc": []}}'],
)
def test_a_damaged_record_is_named(line, project):
    script("results.py", STUDENT, "--publish")
    file = project.parents[1] / "results/mini.jsonl"
    file.write_text(f"{file.read_text()}{line}\n")
    done = script("results.py", STUDENT)
    assert done.status == 2 and done.err.startswith("results/mini.jsonl: line 2 is not a record: ")
