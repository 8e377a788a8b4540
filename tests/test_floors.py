"""Packages import only from the packages below them, without cycles. The contracts are in pyproject.toml."""

import subprocess
import sys

import pytest
from conftest import ROOT
from projects import copy_code

pytest.importorskip("importlinter", reason="import-linter is not installed (pip install import-linter)")


def lint(root):
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_contracts_are_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [("utils/seeds.py", "import training.folder"), ("method/release.py", "import method.attack.kd")],
    ids=["a higher floor", "a cycle"],
)
def test_a_broken_contract_is_found(file, line, tmp_path):
    root = copy_code(tmp_path)
    with open(root / file, "a") as source:
        source.write(f"\n{line}\n")
    done = lint(root)
    assert done.returncode == 1 and "1 broken" in done.stdout, done.stdout
