"""Tiny experiments on `digits` in temporary folders, and functions that run the scripts of the project."""

import contextlib
import functools
import gc
import io
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # read when PyTorch is imported, here and in the scripts that tests start

import pytest
import torch
from processes import share_server

from training.zoo import Zoo
from utils import checkpoint, data, datasets

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "model_name": "net",
    "num_channels": 4,
    "learning_rate": 0.001,
    "schedule": [1],
    "gamma": 0.1,
    "batch_size": 32,
    "num_epochs": 2,
    "dataset": "digits",
    "subset_percent": 0.1,
    "precision": "fp32",
}


all_digits = functools.cache(datasets.digits)  # loading takes longer than an epoch of a tiny experiment


@functools.cache
def few_digits(*where):
    """`digits` with 100 test images. Evaluation on all 899 takes three times as long as a tiny epoch of training."""
    images, labels, *test = all_digits(*where)
    return (images, labels, *(part[:100] for part in test))


datasets.digits = few_digits
os.fsync = lambda file: None  # waiting for the disk takes longer than an epoch of a tiny experiment, too


def pytest_configure(config):
    gc.disable()  # until all tests are collected
    if hasattr(config, "workerinput") or config.getoption("numprocesses", 0):  # with pytest-xdist
        share_server()


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Garbage collections leave out all objects of PyTorch, pytest and the tests, which exist until the end."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # otherwise libraries report what was never collected


@pytest.fixture(autouse=True)
def one_thread():
    """Threads do not make small networks faster. On busy cores they make them ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Restore the signal handlers that a script replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def experiment(folder, **changes):
    """Make an experiment folder whose params.json has TINY and `changes`. The value None removes a key."""
    raw = {name: value for name, value in (TINY | changes).items() if value is not None}
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(raw))
    return folder


def with_teacher(teacher, role="teacher", **changes):
    """The keys of a student of the experiment `teacher`, or of a nasty teacher with this adversarial network."""
    own = {"alpha": 0.9} if role == "teacher" else {"weight": 0.1}
    source = {f"{role}_model": "net", f"{role}_resume": str(teacher / "best_model.tar")}
    return source | {"temperature": 4} | own | changes


def grow(root, named=None, **changes):
    """Make baseline/teacher, baseline/student, kd_normal/student, kd_nasty/nasty and kd_nasty/student below `root`.

    named: the path of `root` in the keys that name a checkpoint of another experiment.
    """
    named = named or root
    experiment(root / "baseline/teacher", **changes)
    experiment(root / "baseline/student", **changes)
    experiment(root / "kd_normal/student", **with_teacher(named / "baseline/teacher"), **changes)
    experiment(root / "kd_nasty/nasty", **with_teacher(named / "baseline/teacher", "adversarial"), **changes)
    experiment(root / "kd_nasty/student", **with_teacher(named / "kd_nasty/nasty"), **changes)
    return root


SCRIPTS = {
    "baseline/teacher": "train_scratch.py",
    "baseline/student": "train_scratch.py",
    "kd_normal/student": "train_kd.py",
    "kd_nasty/nasty": "train_nasty.py",
    "kd_nasty/student": "train_kd.py",
}


def script(name, *argv):
    """Run a script of the project in this process. Returns .status, .out and .err. Uncaught exceptions are raised."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    status = 0
    sys.argv = [name, *map(str, argv)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as stopped:
        status = stopped.code or 0
    finally:
        sys.argv = before
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def train(folder, *argv):
    """Run the training script of the experiment `folder`, which must succeed."""
    raw = json.loads((folder / "params.json").read_text())
    name = "kd" if "alpha" in raw else "nasty" if "weight" in raw else "scratch"
    done = script(f"train_{name}.py", "--save_path", folder, *argv)
    assert done.status == 0, done.err
    return done


def weights(file):
    return torch.load(file, weights_only=True)["state_dict"]


def same_weights(one, other):
    """Whether the weights of two checkpoints have the same bits."""
    a, b = weights(one), weights(other)
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder):
    """The lines of metrics.jsonl without the times and digests."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "digest")} for line in lines]


def files(folder):
    """{file: (content, time of the last change)} of all files below `folder`."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def frozen(tmp_path_factory):
    """The checkpoint of a network that serves as teacher and as adversarial network."""
    path = tmp_path_factory.mktemp("frozen") / "best_model.tar"
    torch.manual_seed(1)
    network = Zoo(data.DATASETS["digits"], torch.device("cpu")).fresh("net", num_channels=4)
    checkpoint.save(path, {"state_dict": network.state_dict(), "params": {"num_channels": 4}})
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The five experiments of `grow` after training. Tests must not change them."""
    root = grow(tmp_path_factory.mktemp("trained"))
    for name in SCRIPTS:
        train(root / name)
    return root
