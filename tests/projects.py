"""Projects for tests: a project root with made-up runs in this process, and copies of the repository."""

import json
import shutil
import subprocess

from conftest import ROOT

from study import ledger, publish
from training import spec
from utils import paths

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
    """Make a project without experiments in the folder `root`, with few test images."""
    for name in CODE:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, root)
    return with_few_test_images(root)


def with_few_test_images(root):
    """Change `digits` in the project `root`, so that it has 100 test images, like `few_digits`."""
    file = root / "utils/datasets.py"
    source = file.read_text()
    assert "= order[:898], order[898:]\n" in source
    file.write_text(source.replace("order[898:]", "order[898:998]"))
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
