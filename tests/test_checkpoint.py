"""Checkpoints: their layout, checkpoints of the released code, and writing that survives interruptions."""

import os
import random
from pathlib import Path

import pytest
import torch
from projects import experiment, files, same_weights, script, train, weights, with_teacher

import model
from training.zoo import Zoo
from utils import checkpoint, data
from utils.errors import UserError
from utils.paths import read_json, write_file


@pytest.fixture(params=["best_model.tar", "last_model.tar"])
def ours(request, trained):
    return trained / "kd_nasty/nasty" / request.param


def test_layout(ours):
    content = torch.load(ours, weights_only=True)
    assert {"epoch", "state_dict", "optim_dict"} <= content.keys()
    assert list(content["state_dict"]) == list(model.build("net", 10, num_channels=2).state_dict())
    assert all(type(value) is torch.Tensor for value in content["state_dict"].values())
    assert content["optim_dict"].keys() == {"state", "param_groups"}
    assert content["params"]["seed"] == 0 and content["params"]["precision"] == "fp32"
    assert [Path(path).parent.name for path in content["origins"]] == ["teacher"]


def test_epochs_are_counted_as_in_metrics(trained):
    assert torch.load(trained / "baseline/teacher/last_model.tar", weights_only=True)["epoch"] == 2


def test_ours_loads_into_a_plain_network(ours):
    network = model.build("net", 10, num_channels=2)
    network.load_state_dict(torch.load(ours, weights_only=True)["state_dict"], strict=True)


LAYOUTS = {
    "released": lambda state: {"epoch": 3, "state_dict": state, "optim_dict": {"state": {}, "param_groups": []}},
    "DataParallel": lambda state: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
    "bare": lambda state: state,
    "bare with prefix": lambda state: {f"module.{k}": v for k, v in state.items()},
    "half precision": lambda state: {
        "state_dict": {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_foreign_checkpoints_teach(layout, legacy, tmp_path):
    """The file has no parameters, so the network has the default of 32 channels."""
    torch.manual_seed(3)
    network = model.build("net", 10).eval()
    file = tmp_path / "foreign.tar"
    torch.save(LAYOUTS[layout](network.state_dict()), file, _use_new_zipfile_serialization=not legacy)
    teacher = Zoo(data.DATASETS["digits"], torch.device("cpu")).frozen("net", file)
    images = torch.randn(3, 3, 32, 32)
    tolerance = 1e-2 if layout == "half precision" else 1e-6
    torch.testing.assert_close(teacher(images), network(images), rtol=tolerance, atol=tolerance)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_a_released_teacher_trains_a_student_and_its_prefix_goes_no_further(tmp_path):
    released = tmp_path / "released/best_model.tar"
    released.parent.mkdir()
    torch.save(LAYOUTS["DataParallel"](model.build("net", 10).state_dict()), released)
    student = experiment(tmp_path / "student", **with_teacher(released.parent))
    train(student)
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in weights(student / "best_model.tar"))


def test_resume_starts_from_weights(tmp_path, trained):
    """The learning rate is so small that only batch-norm statistics change."""
    folder, source = experiment(tmp_path / "x", learning_rate=1e-30), trained / "baseline/teacher/best_model.tar"
    train(folder, "--resume", source)
    ours, theirs = weights(folder / "last_model.tar"), weights(source)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.endswith(("weight", "bias")))


def test_teacher_resume_replaces_the_teacher(tmp_path, trained):
    folder = experiment(tmp_path / "x", **with_teacher(tmp_path / "nowhere"))
    teacher = trained / "baseline/teacher"
    train(folder, "--teacher_resume", teacher / "best_model.tar")
    assert same_weights(folder / "last_model.tar", trained / "kd_normal/student/last_model.tar")


def test_what_a_changed_run_starts_from_is_in_its_params(tmp_path, trained):
    folder, source = experiment(tmp_path / "x"), trained / "baseline/teacher/best_model.tar"
    train(folder, "--resume", source, "--set", "num_epochs=1")
    (made,) = (path for path in tmp_path.iterdir() if path != folder)
    assert read_json(made / "params.json") == read_json(folder / "params.json") | {
        "num_epochs": 1,
        "resume": str(source),
    }
    assert "finished" in script("train_scratch.py", "--save_path", made).out


@pytest.mark.parametrize("argument", [[], ["best_model.tar"], ["last_model.tar"]])
def test_evaluate_scores_and_changes_nothing(argument, trained):
    folder = trained / "kd_nasty/nasty"
    before = files(folder)
    done = script("train_nasty.py", "--save_path", folder, "--evaluate", *(folder / name for name in argument))
    assert done.status == 0, done.err
    state = torch.load(folder / (argument or ["best_model.tar"])[0], weights_only=True)
    if state["best"][0] == state["epoch"] - 1:
        assert f"acc: {state['best'][1]:.2f} ; loss: " in done.out
    assert files(folder) == before


class Full:
    """A disk that is full after `space` bytes."""

    def __init__(self, file, space):
        self.file, self.space = file, space

    def write(self, content):
        self.space -= len(content)
        if self.space < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(content)


@pytest.mark.parametrize("space", [0, 1000])
def test_a_failing_write_leaves_the_old_file(tmp_path, space):
    path = tmp_path / "last_model.tar"
    checkpoint.save(path, {"state_dict": {"a": torch.ones(3)}})
    before = path.read_bytes()
    with pytest.raises(UserError, match="No space left"):
        write_file(path, lambda file: Full(file, space).write(b"x" * 2000))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", [".", "/", ".."])
def test_a_folder_is_no_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_file(Path(path), lambda file: file.write(b"x"))
    assert list(tmp_path.parent.glob("*.tmp")) == list(tmp_path.iterdir()) == []


def test_a_kill_before_the_renaming_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last_model.tar"
    checkpoint.save(path, {"epoch": 1})
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 1}


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    checkpoint.save(tmp_path / "x.tar", {"epoch": 1})
    monkeypatch.setattr(checkpoint, "open", denied, raising=False)
    with pytest.raises(UserError, match=r"x\.tar: cannot be read: Permission denied"):
        checkpoint.load(tmp_path / "x.tar")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_truncated_anywhere(tmp_path, legacy):
    path, rng = tmp_path / "x.tar", random.Random(0)
    torch.save(
        {"state_dict": model.build("net", 10, num_channels=1).state_dict()},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    whole = path.read_bytes()
    for length in [*range(0, 600, 37), *(rng.randrange(len(whole)) for _ in range(60))]:
        path.write_bytes(whole[:length])
        # A file of torch < 1.6 that is cut inside a name looks like a file with another name, which is refused too.
        with pytest.raises(UserError, match=r"x\.tar: (not a checkpoint, or truncated|holds more than plain tensors)"):
            checkpoint.load(path)
