"""The main scripts in a fresh clone: git sees no change, and a table takes little more time than importing PyTorch."""

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import command, commands
from projects import ROOT, clone, commit, copy_code, git, grow, with_few_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("git") and (ROOT / ".git").exists()), reason="this is no git repository"),
]
LONG = "resume=" + 40 * "none/such/"  # so long that the folder is named by a digest


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A clone with the tiny experiments of `grow` in experiments/tiny."""
    root = with_few_images(clone(tmp_path_factory.mktemp("clone")))
    grow(root / "experiments/tiny", Path("experiments/tiny"), num_epochs=1)
    commit(root)
    return root


def test_a_clone_has_no_output(cloned):
    names = git(cloned, "ls-files").stdout.splitlines()
    assert not [name for name in names if name.endswith((".log", "metrics.jsonl", ".tar")) or "," in name]
    definitions = [Path(name).name for name in names if name.startswith("experiments/")]
    assert set(definitions) == {"params.json", "tables.json"} and definitions.count("tables.json") == 1
    assert len(names) < 450 + 5  # the tiny experiments
    assert git(cloned, "status", "--short").stdout == ""


def test_git_status_is_clean_after_every_script(cloned):
    tiny = "experiments/tiny"
    trained = commands(
        cloned,
        f"train_scratch.py --save_path {tiny}/baseline/teacher",
        f"train_nasty.py --save_path {tiny}/kd_nasty/nasty",
        f"train_kd.py --save_path {tiny}/kd_nasty/student --set alpha=0.5",
        "train_scratch.py --save_path experiments/digits/baseline/cnn8 --set num_epochs=1 subset_percent=0.1",
        f"train_kd.py --save_path {tiny}/kd_nasty/student --evaluate",
    )
    assert [done.status for done in trained] == [0, 0, 0, 0, 2], [done.err for done in trained]
    done = command(cloned, "reproduce.py", tiny, "--seeds", "0", "1", "--jobs", "2")
    assert done.status == 0 and done.out.count(": finished (") == 10 - 2, done.err  # two are trained already
    printed = commands(
        cloned,
        f"results.py {tiny}",
        "results.py table1_digits --format markdown",
        "reproduce.py table1 matrix_digits --dry_run",
        f"train_scratch.py --save_path {tiny}/baseline/teacher --set {LONG}",
        f"figures.py curves {tiny}/kd_nasty/student",
    )
    assert [done.status for done in printed[:4]] == [0, 0, 0, 2], [done.err for done in printed]
    # The run with seed 1, and the failed run of LONG
    assert len(list((cloned / tiny / "baseline").glob("teacher,*"))) == 2
    if not printed[4].status:  # true if matplotlib is installed
        assert (cloned / "figures/yours/curves.pdf").exists()
    assert git(cloned, "status", "--short").stdout == ""


def test_a_run_of_a_clean_clone_is_published(cloned):
    """A record names the commit. For modified code, no record is written."""
    trained, done = commands(
        cloned,
        "train_scratch.py --save_path experiments/tiny/baseline/student",
        "results.py experiments/tiny/baseline/student --publish",
    )
    assert trained.status == done.status == 0, trained.err + done.err
    assert done.out.startswith("results/tiny.jsonl: added: experiments/tiny/baseline/student, seed 0")
    head = git(cloned, "rev-parse", "--short=10", "HEAD").stdout.strip()
    assert f'"commit": "{head}"' in (cloned / "results/tiny.jsonl").read_text()
    (cloned / "results/tiny.jsonl").unlink()
    (cloned / "method/attack/mine.py").touch()
    _, done = commands(
        cloned,
        "train_scratch.py --save_path experiments/tiny/baseline/student --set gamma=0.5",
        "results.py experiments/tiny/baseline/student,gamma=0.5 --publish",
    )
    (cloned / "method/attack/mine.py").unlink()
    assert done.status == 2 and "ran with modified code" in done.err and f"{head}-dirty" in done.err


def seconds(root, *argv):
    """CPU seconds of a Python process. They depend little on other processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *argv], cwd=root, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_printing_a_table_takes_hardly_longer_than_importing_pytorch():
    taken = {"table": [], "import": []}
    for _ in range(3):  # the first of them writes the .pyc files, and other processes may slow it down
        taken["table"].append(seconds(ROOT, "results.py", "table1"))
        taken["import"].append(seconds(ROOT, "-c", "import torch, torchvision"))
        if min(taken["table"]) <= 1.3 * min(taken["import"]):
            return
    pytest.fail(f"CPU seconds: {taken}")


# Packages import only from the packages below them, without cycles. The contracts are in pyproject.toml.

importlinter = pytest.mark.skipif(not importlib.util.find_spec("importlinter"), reason="import-linter is not installed")


def lint(root):
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@importlinter
def test_contracts_are_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@importlinter
@pytest.mark.parametrize(
    ("file", "line"),
    [("utils/epochs.py", "import training.folder"), ("method/release.py", "import method.attack.kd")],
    ids=["a higher package", "a cycle"],
)
def test_a_broken_contract_is_found(file, line, tmp_path):
    root = copy_code(tmp_path)
    with open(root / file, "a") as source:
        source.write(f"\n{line}\n")
    done = lint(root)
    assert done.returncode == 1 and "1 broken" in done.stdout, done.stdout
