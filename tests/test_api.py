"""Training, the benchmark and trained networks from Python, and the tutorial."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import command
from projects import ROOT, TINY, copy_code, experiment, files, grow, same_weights, script, set_root, train
from test_benchmark_study import MINI

import model
import study
import training
from model import pretrained
from study import export as exporting
from utils import checkpoint, data
from utils.errors import UserError
from utils.metrics import evaluate


def test_a_run_from_python_is_that_of_the_script(tmp_path, capsys):
    ours = training.run(tmp_path / "ours", **TINY)
    train(experiment(tmp_path / "script"))
    assert same_weights(ours.checkpoint, tmp_path / "script/best_model.tar")
    assert ours.accuracy == max(line["test"]["acc"] for line in ours.metrics) and len(ours.metrics) == 2
    assert ours.params["num_channels"] == 2 and capsys.readouterr().out == ""


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
    with pytest.raises(UserError, match=r'exists with other parameters: "batch_size": 16 in that run, 8 now'):
        training.run(tmp_path / "x", **TINY | {"batch_size": 8})
    with pytest.raises(UserError, match=r'unknown key "bach_size"; did you mean "batch_size"'):
        training.run(tmp_path / "y", bach_size=16, **TINY)
    with pytest.raises(UserError, match=r"y/params\.json: there is no such file"):
        training.run(tmp_path / "y")
    with pytest.raises(UserError, match=r'"resume": must be a string or null, not "tensor'):
        training.run(tmp_path / "y", resume=torch.zeros(1), **TINY)
    with pytest.raises(UserError, match=r'"method": must be a string, not 3'):
        training.run(tmp_path / "y", method=3, **TINY)
    assert not (tmp_path / "y").exists()
    set_root(monkeypatch, tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/tables.json").write_text(json.dumps({"mini": MINI}))
    with pytest.raises(
        UserError, match='"epochs" cannot be replaced in a benchmark; allowed are attacks, draws, seeds, changes'
    ):
        study.run("mini", epochs=3)
    with pytest.raises(UserError, match="network needs a teacher"):
        study.run("mini", network="resnet18")


def test_paths_tuples_and_numbers_of_numpy(tmp_path):
    one = training.run(tmp_path / "x", **TINY)
    keys = {"resume": one.folder / "best_model.tar", "schedule": (1,), "num_epochs": np.int64(1)}
    other = training.run(tmp_path / "y", **TINY | keys)
    assert len(other.metrics) == 1 and other.params["resume"] == one.checkpoint and other.params["schedule"] == [1]


def test_a_run_that_cannot_begin_leaves_the_folder_free(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere/.* is missing; add --download .* or name its folder"):
        training.run(tmp_path / "x", **TINY | {"dataset": "cifar10"})
    assert len(training.run(tmp_path / "x", **TINY).metrics) == 2


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


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    """All its cells with fewer epochs, in a copy of the project, as a notebook in docs/ runs them."""
    root = copy_code(tmp_path)
    for name in ("digits", "digits-few"):
        for path in (ROOT / "experiments" / name).glob("*/*/params.json"):
            if "," not in path.parent.name:
                (root / path.relative_to(ROOT)).parent.mkdir(parents=True)
                shutil.copy(path, root / path.relative_to(ROOT))
    shutil.copy(ROOT / "experiments/tables.json", root / "experiments")
    (root / "docs").mkdir()
    cells = json.loads((ROOT / "docs/tutorial.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    shorter, epochs = re.subn(r'"num_epochs": \d+', '"num_epochs": 3', "\n".join(code))
    shorter, draws = re.subn(r'"draws": \d+', '"draws": 1', shorter)
    assert (epochs, draws) == (3, 1)
    (root / "docs/tutorial.py").write_text(shorter)
    done = command(root / "docs", "tutorial.py")
    assert done.status == 0, done.err
    teacher, normal, nasty, *audit = done.out.splitlines()
    assert float(teacher.split()[1]) > 50 and "student of the normal teacher" in normal
    assert "student of the nasty teacher" in nasty
    assert [line.split(" |")[0] for line in audit if "score" in line] == ["none", "nasty (own)"]
    assert "not the published benchmark" in audit[-1]


def test_the_tutorial_has_no_outputs():
    """Outputs would be out of date after the next change."""
    cells = json.loads((ROOT / "docs/tutorial.ipynb").read_text())["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")


# Exported weights and `load_model`


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with a trained network in experiments/mini/baseline/teacher."""
    set_root(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    train(experiment(tmp_path / "experiments/mini/baseline/teacher", num_epochs=2))
    return tmp_path


@pytest.fixture
def exported(root):
    """The same network, exported as "mini/teacher", without its run folder."""
    done = script("results.py", "experiments/mini/baseline/teacher", "--export", "--name", "mini/teacher")
    assert done.status == 0, done.err
    assert json.loads(done.out) == pretrained.cards()
    (root / "experiments").rename(root / "elsewhere")
    return root / "model/weights/mini-teacher.pt"


def accuracy(network):
    return evaluate(network, data.load("digits", "", "cpu").test_loader())["acc"]


def test_an_exported_network_is_loaded_by_its_name(exported):
    teacher = model.load_model("mini/teacher")
    card = teacher.card
    assert not teacher.training and teacher.num_classes == 10 and teacher.conv1.out_channels == 2
    assert accuracy(teacher) == pytest.approx(card["accuracy"], abs=1e-4)
    assert card["correct"] == f"{round(card['accuracy'] / 2)} of 50 test images"
    assert (card["dataset"], card["options"]) == ("digits", {"num_channels": 2, "dropout_rate": 0.0})
    assert card["precision"] == "float16" and "MIT" in card["licence"] and "torch" in card["environment"]
    content = torch.load(exported, weights_only=True)
    assert content["state_dict"]["conv1.weight"].dtype == torch.float16 and content.keys() == {
        "state_dict",
        "params",
        "card",
        "digests",
    }
    assert card["sha256"] == pretrained.sha256(exported) and card["weights"] == checkpoint.weights_digest(
        content["state_dict"]
    )
    assert {weight.dtype for weight in teacher.parameters()} == {torch.float32}


def test_weights_stay_float32_if_one_image_more_is_wrong(root, monkeypatch):
    counts = iter([800, 799])
    monkeypatch.setattr(exporting, "count_correct", lambda *_: next(counts))
    card = json.loads(exporting.export("experiments/mini/baseline/teacher"))["mini/baseline/teacher"]
    run = torch.load(root / "experiments/mini/baseline/teacher/best_model.tar", weights_only=True)["state_dict"]
    kept = torch.load(root / card["file"], weights_only=True)["state_dict"]
    assert card["precision"] == "float32" and all(torch.equal(run[name], kept[name]) for name in run)


def test_a_finished_run_on_this_machine_comes_first(exported, root):
    (root / "elsewhere").rename(root / "experiments")
    exported.unlink()
    run = torch.load(root / "experiments/mini/baseline/teacher/best_model.tar", weights_only=True)["state_dict"]
    assert torch.equal(model.load_model("mini/teacher").conv1.weight, run["conv1.weight"])
    last = root / "experiments/mini/baseline/teacher/last_model.tar"
    checkpoint.save(last, torch.load(last, weights_only=True) | {"epoch": 1})  # not finished
    with pytest.raises(UserError, match=r"mini-teacher.pt is missing, and its card has no URL; train experiments/mini"):
        model.load_model("mini/teacher")


def test_a_file_with_another_digest_is_refused(exported):
    content = torch.load(exported, weights_only=True)
    content["state_dict"]["conv1.weight"] += 1
    checkpoint.save(exported, content)
    with pytest.raises(UserError, match=r"mini-teacher.pt is not the file of its card: its SHA-256 differs"):
        model.load_model("mini/teacher")


def test_a_url(exported, root, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(root / "hub"))
    exported.rename(root / "there.pt")
    index = pretrained.cards()
    index["mini/teacher"]["url"] = (root / "there.pt").as_uri()
    (root / "model/pretrained.json").write_text(json.dumps(index))
    for _ in range(2):  # the second time from the cache
        assert model.load_model("mini/teacher").card["options"]["num_channels"] == 2
        (root / "there.pt").unlink(missing_ok=True)
    (root / "there.pt").write_bytes(b"other weights")
    for file in (root / "hub").rglob("*.pt"):
        file.unlink()
    with pytest.raises(UserError, match=r"mini/teacher: download of file:.* failed: invalid hash"):
        model.load_model("mini/teacher")
    assert not list((root / "hub").rglob("*.pt"))


def test_names_that_are_refused(exported, root):
    with pytest.raises(UserError, match=r'no trained network "mini/techer"; .* did you mean "mini/teacher"'):
        model.load_model("mini/techer")
    index = pretrained.cards()
    index["mini/teacher"]["model_name"] = "os:getcwd"
    (root / "model/pretrained.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="networks of other code cannot be loaded by name"):
        model.load_model("mini/teacher")
    (root / "model/pretrained.json").unlink()
    with pytest.raises(UserError, match="there are none yet"):
        model.load_model("mini/teacher")


def test_exports_that_are_refused(root):
    short = experiment(root / "experiments/mini/baseline/short", num_epochs=1)
    train(short)
    raw = json.loads((short / "params.json").read_text())
    content = torch.load(short / "last_model.tar", weights_only=True)
    for name in ("last_model.tar", "best_model.tar"):
        checkpoint.save(short / name, content | {"params": content["params"] | {"num_epochs": 3}})
    (short / "params.json").write_text(json.dumps(raw | {"num_epochs": 3}))
    done = script("results.py", "experiments/mini/baseline/short", "--export")
    assert done.status == 2 and "short: 1/3 epochs; finish the run first" in done.err
    torch.save({"state_dict": content["state_dict"]}, root / "foreign.tar")
    done = script("results.py", "foreign.tar", "--export")
    assert done.status == 2 and "not a checkpoint of a run of this project" in done.err
    done = script("results.py", "experiments/mini/baseline/short", "--name", "x")
    assert done.status == 2 and "--name needs --export" in done.err
    for flags in ("--export --publish", "--export --format json", "--publish --output x"):
        done = script("results.py", "experiments/mini/baseline/teacher", *flags.split())
        assert done.status == 2 and "use only one of --export" in done.err
    done = script("results.py", "experiments/mini/baseline/teacher", "--export", "--set", "num_epochs=1")
    assert done.status == 2 and "--export takes a run folder, and none of --set" in done.err
    assert not (root / "model/pretrained.json").exists()


def test_an_exported_teacher_has_students(exported, root):
    keys = {"teacher_model": "net", "teacher_resume": "model/weights/mini-teacher.pt", "alpha": 0.9, "temperature": 4}
    train(experiment(root / "experiments/mini/kd/student", num_epochs=1, **keys))


def test_exported_weights_of_this_repository():
    """Those of the index are there, with the digests of their cards, and are small."""
    files = sorted((ROOT / pretrained.WEIGHTS).glob("*.pt"))
    assert {card["file"] for card in pretrained.cards().values()} == {
        f"{pretrained.WEIGHTS}/{file.name}" for file in files
    }
    assert sum(file.stat().st_size for file in files) < 12 * 2**20
    for name, card in pretrained.cards().items():
        assert pretrained.exported_file(name, card).suffix == ".pt" and card["url"] is None
