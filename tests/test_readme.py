"""The README keeps what it promises: its tree, its table of keys and its commands are today's."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

import method
import model
from utils.params import Common
from utils.report import report

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TREE = README.partition("## What is where")[2].split("```")[1]


def test_every_source_file_is_in_the_tree():
    files = [path for folder in ("method", "model", "utils") for path in (ROOT / folder).rglob("*.py")]
    files += ROOT.glob("*.py")
    inside = {path.parent for path in files if path.parent.name == "figures"}
    named = [path for path in files if path.parent not in inside and path.stat().st_size > 200]
    assert [path.name for path in named if path.name not in TREE] == []


def test_everything_in_the_tree_exists():
    for name in re.findall(r"[\w/]+\.(?:py|json|npz|txt)\b", TREE):
        assert list(ROOT.rglob(name)), name


def test_every_key_is_in_the_table():
    keys = {field.name for field in dataclasses.fields(Common)} | model.options("net").keys()
    for names in method.names().values():
        keys |= {field.name for name in names for field in dataclasses.fields(method.find(name).Params)}
    table = README.partition("## params.json")[2].partition("## Results")[0]
    assert sorted(key for key in keys if f"`{key}`" not in table) == []


def test_every_experiment_it_names_exists():
    for path in re.findall(r"experiments/[\w./,=-]+", README):
        assert (ROOT / path.rstrip(".,")).exists(), path


@pytest.mark.parametrize(("target", "table"), re.findall(r"<!-- python results\.py (\S+) -->\n(.*?)\n\n", README, re.S))
def test_its_tables_are_those_of_the_committed_runs(target, table):
    if subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", "experiments"], cwd=ROOT, capture_output=True
    ).returncode:
        pytest.skip("these are other runs than the committed ones, or there is no git to ask")
    printed = report(target, "markdown")
    assert table.splitlines() == [line for line in printed.splitlines() if line.startswith("|")]


def test_the_two_lines_that_set_everything_up_stand_there():
    assert "pip install -r requirements.txt && python reproduce.py experiments/digits" in README
    assert "pip install -r requirements-dev.txt && python -m pytest" in README
