"""README.md and experiments/README.md keep what they promise: tree, keys, commands and numbers are today's."""

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest

import method
import model
from study.ledger import record
from study.report import read_matrix, report
from study.tables import load_table, run_of
from training.params import Common

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "experiments/README.md").read_text()
TREE = README.partition("## What is where")[2].split("```")[1]


def tables(pattern):
    """[(what `pattern` finds in the comment above, the table)] for the tables with such a comment."""
    return re.findall(rf"<!-- {pattern} -->\n(.*?)\n\n", README + RESULTS, re.S)


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


def test_every_file_they_name_exists():
    for path in re.findall(r"experiments/[\w./,=-]+", README + RESULTS):
        assert (ROOT / path.rstrip(".,")).exists(), path
    for folder, text in ((ROOT, README), (ROOT / "experiments", RESULTS)):
        for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (folder / path).exists(), path


@pytest.fixture
def committed():
    """Skips where the runs in experiments/ are not the committed ones."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "experiments"]
    if subprocess.run(command, cwd=ROOT, capture_output=True).returncode:
        pytest.skip("these are other runs than the committed ones, or there is no git to ask")


@pytest.mark.parametrize(("target", "table"), tables(r"python results\.py (\S+)"))
def test_its_tables_are_those_of_the_committed_runs(target, table, committed):
    printed = report(target, "markdown")
    assert table.splitlines() == [line for line in printed.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(("folder", "table"), tables(r"trials in (\S+)"))
def test_its_trials_of_possessive_are_all_that_there_are(folder, table, committed):
    found = []
    for path in (ROOT / folder).glob("cnn*/params.json"):
        student = json.loads(path.read_text())
        if "method" not in student and "seed" not in student:
            teacher = (ROOT / student["teacher_resume"]).parent
            keys = json.loads((teacher / "params.json").read_text())
            tests, own = (read_tests(run) for run in (teacher, path.parent))
            cells = [keys["order"], *(f"{keys[name]:g}" for name in ("beta_others", "beta_target", "temperature"))]
            cells += [f"{best(tests):.2f}", f"{tests[-1]['acc']:.2f}", f"{tests[-1]['rank_correlation']:.2f}"]
            found.append(f"| {' | '.join([*cells, f'{best(own):.2f}'])} |".replace("-", "−"))
    assert sorted(table.splitlines()[2:]) == sorted(found)


def read_tests(run):
    return [json.loads(line)["test"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def best(tests):
    return max(test["acc"] for test in tests)


MEASURED = [(-2, "matrix_digits", "datafree_digits"), (-1, "matrix_CIFAR10-small", "datafree_CIFAR10-small")]


@pytest.mark.parametrize(("column", "target", "data_free"), MEASURED)
def test_what_it_measured_of_each_method_is_what_the_tables_say(column, target, data_free, committed):
    block = README.partition("## Methods")[2].partition("Beside `acc`")[0]
    rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")]
    written = [row[column] for row in rows if re.match(r"[+−]?\d", row[column])]
    matrix = load_table(target)
    _, smoothed, rows = read_matrix(matrix)
    cells = (cell for _, (cell, *_) in matrix.rows)
    rows = [(teacher[cell.epoch], attacks) for cell, (teacher, attacks) in zip(cells, rows, strict=True)]
    (normal, from_normal), *defended, stingy, without_key, with_key = rows  # the first of which is nasty
    changes = [(teacher - normal, kd["difference"]) for teacher, (kd, *_) in [*defended, without_key, stingy, with_key]]
    changes += [(a["difference"], b["difference"]) for a, b in zip(from_normal, defended[0][1], strict=True)]
    found = [", ".join(f"{value:+.2f}" for value in pair) for pair in [*changes, (smoothed["difference"],)]]
    stolen = [[record(run_of(cell), {})["best"] for cell in cells[1:]] for _, cells in load_table(data_free).rows]
    found += [f"{one:.1f}, {other:.1f}" for one, other in zip(*stolen, strict=True)]
    assert written == [text.replace("-", "−") for text in found]


def test_the_two_lines_that_set_everything_up_stand_there():
    assert "pip install -r requirements.txt && python reproduce.py experiments/digits" in README
    assert "pip install -r requirements-dev.txt && python -m pytest" in README
