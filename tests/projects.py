"""Experiments and projects for tests: tiny experiments on `digits`, made-up runs, and copies of the repository."""

import contextlib
import functools
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from study import ledger, publish
from training import spec
from utils import data, datasets, paths

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "model_name": "net",
    "num_channels": 2,
    "learning_rate": 0.03,
    "schedule": [1],
    "gamma": 0.1,
    "batch_size": 16,
    "num_epochs": 2,
    "dataset": "digits",
    "subset_percent": 0.2,
    "precision": "fp32",
}


all_digits = functools.cache(datasets.digits)  # loading takes longer than an epoch of a tiny experiment


@functools.cache
def few_digits(*where):
    """`digits` with 224 of 898 training images and 50 of 899 test images."""
    images, labels, test_images, test_labels = all_digits(*where)
    return images[:224], labels[:224], test_images[:50], test_labels[:50]


datasets.digits = few_digits
os.fsync = lambda file: None  # waiting for the disk takes longer than an epoch of a tiny experiment, too


def experiment(folder, **changes):
    """Make an experiment folder whose params.json has TINY and `changes`. The value None removes a key."""
    raw = {name: value for name, value in (TINY | changes).items() if value is not None}
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(raw))
    return folder


def tiny_loader():
    """The loader of the training images of a tiny experiment: three batches, of which the last is smaller."""
    return data.load("digits", "", torch.device("cpu"), TINY["subset_percent"]).train_loader(TINY["batch_size"])


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


# Projects

CODE = ("method", "model", "study", "training", "utils")


def set_root(monkeypatch, root):
    """Make `root` the project root of this process. The code stays that of this repository."""
    monkeypatch.setattr(paths, "ROOT", root)


def log(folder, *accuracies, loss=1.0):
    """Write a metrics.jsonl with these test accuracies, and return its lines."""
    lines = [
        {"epoch": i, "train": {"loss": loss}, "test": {"acc": acc, "loss": 1.0}} for i, acc in enumerate(accuracies, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def local(experiment, *accuracies, **arguments):
    """Make a run folder with these test accuracies, and return it. arguments: those of `spec.make`."""
    run = spec.make(experiment, **arguments)
    spec.write(run)
    log(paths.from_root(run.folder), *accuracies)
    return paths.from_root(run.folder)


def recorded(experiment, *accuracies, **arguments):
    """Make a record with these test accuracies. arguments: those of `spec.make`."""
    run = spec.make(experiment, **arguments)
    tests = [{"train": {}, "test": {"acc": acc, "loss": 1.0}} for acc in accuracies]
    publish.write_records(ledger.records_file(run.experiment), [publish.record_of_metrics(run, tests)])


def copy_code(root):
    """Make a project without experiments in the folder `root`, with few images."""
    for name in CODE:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, root)
    return with_few_images(root)


def with_few_images(root):
    """Change `digits` in the project `root`, so that it has the images of `few_digits`."""
    file = root / "utils/datasets.py"
    source = file.read_text()
    assert "train, test = order[:898], order[898:]\n" in source
    file.write_text(source.replace("order[:898], order[898:]", "order[:224], order[898:948]"))
    return root


def clone(root):
    """Make a git repository in the folder `root` with all files that git tracks here, in their present state."""
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    git(root, "init", "--quiet")
    commit(root)
    return root


def commit(root):
    git(root, "add", "--all")
    git(root, "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "-m", "test")


def git(root, *arguments):
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)


def grid(text):
    """The cells of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
