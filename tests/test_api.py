"""Training and the benchmark from Python, and the tutorial that shows them."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, TINY, experiment, files, grow, same_weights, train
from projects import command, copy_code, set_root
from test_benchmark_study import MINI

import study
import training
from utils.errors import UserError


def test_a_run_from_python_is_that_of_the_script(tmp_path, capsys):
    ours = training.run(tmp_path / "ours", **TINY)
    train(experiment(tmp_path / "script"))
    assert same_weights(ours.checkpoint, tmp_path / "script/best_model.tar")
    assert ours.accuracy == max(line["test"]["acc"] for line in ours.metrics) and len(ours.metrics) == 2
    assert ours.params["num_channels"] == 4 and capsys.readouterr().out == ""


def test_a_run_is_not_repeated_but_extended(tmp_path):
    first = training.run(tmp_path / "x", **TINY)
    before = files(tmp_path)
    assert training.run(tmp_path / "x").metrics == training.run(tmp_path / "x", **TINY).metrics == first.metrics
    changed = {path for path, found in files(tmp_path).items() if found != before.get(path)}
    assert changed <= {tmp_path / "x/params.json"}
    assert len(training.run(tmp_path / "x", **TINY | {"num_epochs": 3}).metrics) == 3


def test_a_log_is_printed_on_request(tmp_path, capsys):
    training.run(tmp_path / "x", quiet=False, **TINY)
    assert "So far best epoch" in capsys.readouterr().out


def test_mistakes(tmp_path, monkeypatch):
    training.run(tmp_path / "x", **TINY)
    with pytest.raises(UserError, match=r'exists with other parameters: "batch_size": 32 in that run, 16 now'):
        training.run(tmp_path / "x", **TINY | {"batch_size": 16})
    with pytest.raises(UserError, match=r'unknown key "bach_size"; did you mean "batch_size"'):
        training.run(tmp_path / "y", bach_size=16, **TINY)
    with pytest.raises(UserError, match=r"y/params\.json: there is no such file"):
        training.run(tmp_path / "y")
    assert not (tmp_path / "y").exists()
    set_root(monkeypatch, tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/tables.json").write_text(json.dumps({"mini": MINI}))
    with pytest.raises(
        UserError, match='"epochs" cannot be replaced in a benchmark; allowed are draws, seeds, changes'
    ):
        study.run("mini", epochs=3)


@pytest.mark.slow
def test_an_audit_from_python(tmp_path, monkeypatch, capsys):
    set_root(monkeypatch, tmp_path)
    grow(tmp_path / "experiments/mini", Path("experiments/mini"), num_epochs=3)
    (tmp_path / "experiments/tables.json").write_text(json.dumps({"mini": MINI}))
    teacher = training.run(tmp_path / "elsewhere/teacher", **TINY)
    smaller = {"draws": 1, "seeds": [0, 1], "changes": {"num_epochs": 1}}
    none, own = study.run("mini", teacher.checkpoint, presets=["insider"], **smaller)
    assert (none["defence"], own["defence"]) == ("none", "teacher") and capsys.readouterr().out == ""
    assert own["teacher"]["accuracy"] == pytest.approx([teacher.accuracy] * 2) and own["draws"] == 1
    assert any(flag.startswith('not the published benchmark: {"draws": 1, ') for flag in none["flags"])
    for path in (tmp_path / "experiments").rglob("metrics.jsonl"):
        assert len(path.read_text().splitlines()) == 1
    assert not (tmp_path / "results").exists() and "teacher" in study.show([none, own])


CELLS = """
import json
cells = json.load(open("tutorial.ipynb"))["cells"]
for cell in cells:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]))
"""


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    """All its cells, in a copy of the project, as a notebook in docs/ runs them."""
    root = copy_code(tmp_path)
    for name in ("digits", "digits-matrix"):
        for path in (ROOT / "experiments" / name).glob("*/*/params.json"):
            if "," not in path.parent.name:
                (root / path.relative_to(ROOT)).parent.mkdir(parents=True)
                shutil.copy(path, root / path.relative_to(ROOT))
    shutil.copy(ROOT / "experiments/tables.json", root / "experiments")
    (root / "docs").mkdir()
    shutil.copy(ROOT / "docs/tutorial.ipynb", root / "docs")
    done = command(root / "docs", "-c", CELLS)
    assert done.status == 0, done.err
    teacher, normal, nasty, *audit = done.out.splitlines()
    assert teacher.startswith("teacher 9") and "student of the normal teacher" in normal
    assert "student of the nasty teacher" in nasty
    assert [line.split(" |")[0] for line in audit if "score" in line] == ["none", "nasty (own)"]
    assert "not the published benchmark" in audit[-1]


def test_the_tutorial_has_no_outputs():
    """Outputs would be out of date after the next change."""
    cells = json.loads((ROOT / "docs/tutorial.ipynb").read_text())["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
