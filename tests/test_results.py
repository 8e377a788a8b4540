"""Tables of what was logged, against numbers worked out by hand."""

import csv
import io
import json
import math
import re

import pytest
from conftest import experiment, script, with_teacher

from study import ledger as records
from study import plan, report, tables

# A textbook's 0.975 quantiles of Student's t: {degrees of freedom: quantile}
QUANTILES = {
    **{1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228},
    **{11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093},
    **{20: 2.086, 24: 2.064, 30: 2.042, 40: 2.021, 60: 2.000, 120: 1.980},
}
MINI = {
    "title": "A table with 100 % of everything & τ_s",
    "source": "nobody, 2021",
    "columns": ["teacher", "student"],
    "rows": [
        {"name": "student baseline", "cells": [None, ["mini/baseline/student", 70.0]]},
        {"name": "normal", "cells": [["mini/baseline/teacher", 90.0], ["mini/kd_normal/student", 73.5]]},
        {"name": "nasty", "cells": [["mini/kd_nasty/nasty", 89.0], ["mini/kd_nasty/student", 61.0]]},
    ],
}

MATRIX = {
    "title": "A matrix",
    "source": "nobody, 2022",
    "alone": "mini/baseline/student",
    "yardstick": {"label_smoothing": 0.1},
    "attacks": {"kd": {}, "hotter": {"temperature": 50}},
    "defences": {"normal": "mini/kd_normal/student", "nasty": "mini/kd_nasty/student"},
}


def log(folder, *accuracies):
    lines = [{"epoch": i, "test": {"acc": acc, "loss": 1.0}} for i, acc in enumerate(accuracies, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project root with the table `mini`: three seeds of the baseline, two of a student, the rest unfinished."""
    for module in (plan, records, tables):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    root, named = tmp_path / "experiments/mini", tables.Path("experiments/mini")
    for name, seed, best in ("student", 0, 80.0), ("student,seed=1", 1, 82.0), ("student,seed=2", 2, 87.0):
        log(experiment(root / "baseline" / name, seed=seed), best, best - 0.5)
    log(experiment(root / "baseline/teacher"), 91.0, 91.5)
    for name, seed, best in ("student", 0, 84.0), ("student,seed=1", 1, 85.0):
        teacher = with_teacher(named / "baseline/teacher")
        log(experiment(root / "kd_normal" / name, seed=seed, **teacher), 1.0, best)
    nasty = with_teacher(named / "baseline/teacher", "adversarial")
    log(experiment(root / "kd_nasty/nasty", num_epochs=160, **nasty), *range(12))
    experiment(root / "kd_nasty/student", **with_teacher(named / "kd_nasty/nasty"))
    (tmp_path / "experiments/tables.json").write_text(json.dumps({"mini": MINI, "other": "mini", "matrix": MATRIX}))
    return root


@pytest.fixture
def matrix(project):
    """The table `matrix`: the yardstick and the normal teacher's students run, of the nasty one's nothing finished."""
    teacher = with_teacher(tables.Path("experiments/mini/baseline/teacher"), temperature=50)
    for tag, seed, best in ("", 0, 83.5), (",seed=1", 1, 84.5):
        smoothed = project / f"baseline/student,label_smoothing=0.1{tag}"
        log(experiment(smoothed, label_smoothing=0.1, seed=seed), best, 83.25)
        log(experiment(project / f"kd_normal/student{tag},temperature=50", **teacher, seed=seed), 85.0, 86.0)
    return project


@pytest.mark.parametrize("freedom", QUANTILES)
def test_quantiles_of_t(freedom):
    assert records.t_975(freedom) == pytest.approx(QUANTILES[freedom], abs=6e-4)


@pytest.mark.parametrize(
    ("accuracies", "mean", "half_width"),
    [
        ([80, 82], 81, 12.706 * math.sqrt(2) * math.sqrt(3 / 2)),  # s² = (1 + 1) / 1
        ([80, 82, 87], 83, 4.303 * math.sqrt(13) * math.sqrt(4 / 3)),  # s² = (9 + 1 + 16) / 2
        ([70, 71, 72, 73, 74], 72, 2.776 * math.sqrt(2.5) * math.sqrt(6 / 5)),  # s² = (4 + 1 + 0 + 1 + 4) / 4
    ],
)
def test_prediction_interval(accuracies, mean, half_width):
    best = dict(enumerate(accuracies))
    summary = records.Summary(best, best, [])
    for sign in (-1, 1):
        assert summary.inside(mean + sign * 0.999 * half_width) is True
        assert summary.inside(mean + sign * 1.001 * half_width) is False


def test_no_interval_without_two_runs_or_a_published_number():
    assert records.Summary({0: 80}, {0: 80}, []).inside(80) is None
    assert records.Summary({0: 80, 1: 81}, {0: 80, 1: 81}, []).inside(None) is None


def entries(project, style, target="mini"):
    """{(row, column): entry} of the table, from its JSON or CSV."""
    text = report.report(target, style)
    found = json.loads(text) if style == "json" else list(csv.DictReader(io.StringIO(text)))
    return {(entry["row"], entry["column"]): entry for entry in found}


@pytest.mark.parametrize("style", ["json", "csv"])
def test_numbers(project, style):
    cells = entries(project, style)
    assert len(cells) == 5
    alone = cells["student baseline", "student"]
    assert [float(alone[name]) for name in ("n", "best", "last")] == pytest.approx([3, 83.0, 82.5])
    assert float(alone["best_sd"]) == pytest.approx(math.sqrt(13)) == float(alone["last_sd"])
    assert alone["difference"] in (None, "") and alone["teacher"] == ""
    assert alone["published_inside"] in (True, "True")  # 83 ± 17.9 holds 70
    student = cells["normal", "student"]
    assert float(student["best"]) == 84.5 and float(student["difference"]) == pytest.approx(3.5)
    assert float(student["difference_sd"]) == pytest.approx(math.sqrt(0.5))  # of 84 − 80 and 85 − 82
    assert float(student["published_difference"]) == pytest.approx(3.5)
    assert student["teacher"] == "teacher" and student["published_inside"] in (True, "True")  # 84.5 ± 11.003
    teacher = cells["normal", "teacher"]
    assert float(teacher["best"]) == 91.5 and teacher["best_sd"] in (None, "")
    assert (
        cells["nasty", "teacher"]["best"] in (None, "") and cells["nasty", "teacher"]["unfinished"] == "12/160 epochs"
    )
    missing = cells["nasty", "student"]
    assert missing["best"] in (None, "") and missing["unfinished"] == "" and float(missing["published"]) == 61


def grid(text):
    """The cells of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_markdown(project):
    header, rule, *rows = grid(report.report("mini", "markdown"))
    assert header == ["", "", "teacher", "student"] and all(set(cell) <= set(":-") for cell in rule)
    assert rows == [
        ["student baseline", "best", "", "83.00 ± 3.61 n=3"],
        ["", "last", "", "82.50 ± 3.61"],
        ["", "paper", "", "70.00 inside"],
        ["normal", "best", "91.50", "84.50 ± 0.71 (+3.50) n=2"],
        ["", "last", "91.50", "84.50 ± 0.71"],
        ["", "paper", "90.00", "73.50 (+3.50) inside"],
        ["nasty", "best", "12/160 epochs", "–"],
        ["", "last", "", ""],
        ["", "paper", "89.00", "61.00 (-9.00)"],
    ]


def test_matrix(matrix):
    text = report.report("matrix", "markdown")
    header, _, *rows = grid(text)
    assert header == ["defence", "teacher", "kd", "hotter", "strongest attack", "minus yardstick"]
    assert rows == [  # the student alone has 80, 82 and 87, with label smoothing 83.5 and 84.5
        ["normal", "91.50", "+3.50 ± 0.71", "+5.00 ± 1.41", "hotter +5.00 ± 1.41", "+2.00"],
        ["nasty", "12/160 epochs", "–", "–", "", ""],
    ]
    assert "83.00 ± 3.61 n=3" in text and "label_smoothing 0.1, 84.00 ± 0.71 (+3.00) n=2" in text


def test_a_matrix_compares_only_what_has_as_many_seeds(matrix):
    (matrix / "baseline/student,label_smoothing=0.1,seed=1/metrics.jsonl").unlink()
    assert grid(report.report("matrix", "markdown"))[2][-2:] == ["hotter +5.00 ± 1.41", ""]
    (matrix / "kd_normal/student,seed=1,temperature=50/metrics.jsonl").unlink()
    assert grid(report.report("matrix", "markdown"))[2][-3:] == ["+6.00", "", ""]


@pytest.mark.parametrize("style", ["json", "csv"])
def test_numbers_of_a_matrix(matrix, style):
    cells = entries(matrix, style, "matrix")
    assert len(cells) == 2 + 2 * 3
    found = {place: float(cell["best"]) for place, cell in cells.items() if cell["best"] not in (None, "")}
    assert found == {
        ("alone", "student"): 83.0,
        ("yardstick", "student"): 84.0,
        ("normal", "teacher"): 91.5,
        ("normal", "kd"): 84.5,
        ("normal", "hotter"): 86.0,
    }


@pytest.mark.parametrize("style", report.FORMATS)
def test_a_matrix_of_which_nothing_has_run(matrix, style):
    for path in matrix.rglob("metrics.jsonl"):
        path.unlink()
    assert "normal" in report.report("matrix", style)


def test_latex(project):
    text = report.report("mini", "latex")
    head, body = text.split(r"\begin{tabular}")
    body, tail = body.split(r"\end{tabular}")
    assert all(line.startswith("%") for line in (head + tail).splitlines() if line)  # nothing to typeset by mistake
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 10 and all(len(re.findall(r"(?<!\\)&", row)) == 3 for row in rows)
    assert not re.search(r"(?<!\\)[%#_]", body)


def test_runs_in_which_a_key_is_changed_everywhere(matrix):
    """The student alone is that of the same change, the published numbers stay, and what has it already is itself."""
    changes = {"momentum": 0.8, "gamma": 0.1}
    teacher = with_teacher(tables.Path("experiments/mini/baseline/teacher,momentum=0.8"), momentum=0.8)
    log(experiment(matrix / "baseline/student,momentum=0.8", momentum=0.8), 60.0, 60.0)
    log(experiment(matrix / "kd_normal/student,momentum=0.8", **teacher), 61.0, 62.0)
    log(
        experiment(matrix / "kd_normal/student,momentum=0.8,temperature=50", **teacher | {"temperature": 50}), 63.0, 1.0
    )
    _, _, *rows = grid(report.report("mini", "markdown", changes))
    assert rows[0][3] == "60.00" and rows[2][3] == "70.00"
    assert rows[3] == ["normal", "best", "–", "62.00 (+2.00)"] and rows[5][2:] == ["90.00", "73.50 (+3.50)"]
    assert "In all runs momentum 0.8, gamma 0.1." in report.report("mini", "text", changes)
    assert grid(report.report("matrix", "markdown", changes))[2][2:4] == ["+2.00", "+3.00"]
    folder = {row[0]: row for row in grid(report.report("experiments/mini", "markdown", changes, with_changed=False))}
    assert folder["mini/kd_normal/student,momentum=0.8"][2:6] == ["62.00", "62.00", "+2.00", "73.50"]


def test_text(project):
    text = report.report("mini")
    assert MINI["title"] in text and MINI["source"] in text
    for words in ("83.00 ± 3.61 n=3", "84.50 ± 0.71 (+3.50) n=2", "12/160 epochs", "–", "61.00 (-9.00)"):
        assert words in text


def test_another_word_for_a_target(project):
    assert report.report("other") == report.report("mini")


@pytest.mark.parametrize("style", report.FORMATS)
def test_folder(project, style):
    done = script("results.py", "experiments/mini", "--format", style)
    assert done.status == 0, done.err
    if style == "json":
        found = {entry["experiment"]: entry for entry in json.loads(done.out)}
        assert len(found) == 5 and found["mini/kd_normal/student"]["difference"] == pytest.approx(3.5)
    elif style == "csv":
        found = list(csv.DictReader(io.StringIO(done.out)))
        assert [entry["experiment"] for entry in found] == sorted(entry["experiment"] for entry in found)
    elif style == "markdown":
        rows = {row[0]: row for row in grid(done.out)}
        assert rows["mini/baseline/student"] == ["mini/baseline/student", "", "83.00 ± 3.61", "82.50 ± 3.61", "", "70.00", "3"]  # fmt: skip # noqa: E501
        assert rows["mini/kd_nasty/nasty"][1:3] == ["teacher", "12/160 epochs"]
    else:
        assert "83.00" in done.out and "12/160 epochs" in done.out


def test_a_run_with_another_teacher_and_one_beside_its_folder(project):
    other = with_teacher(tables.Path("experiments/mini/kd_nasty/nasty"), num_epochs=1, dropout_rate=0.0)
    log(experiment(project / "kd_normal/student,num_epochs=1", **other), 77.0)
    rows = {row[0]: row for row in grid(report.report("experiments/mini/kd_normal/student", "markdown"))}
    assert rows["mini/kd_normal/student"][1:3] == ["teacher", "84.50 ± 0.71"]
    assert rows["mini/kd_normal/student,num_epochs=1"][1:3] == ["nasty", "77.00"]


def test_a_baseline_is_one_with_defaults_written_out(project):
    raw = with_teacher(tables.Path("experiments/mini/baseline/teacher"), dropout_rate=0.0)
    log(experiment(project / "kd_normal/another", **raw), 1.0, 83.0)
    rows = {row[0]: row for row in grid(report.report("experiments/mini/kd_normal", "markdown"))}
    assert rows["mini/kd_normal/another"][4] == "+3.00"  # the student's 80 with seed 0, whose folder says none


def test_a_damaged_line_is_named(project):
    (project / "baseline/teacher/metrics.jsonl").write_text('{"epoch": 1, "te\n{}\n')
    done = script("results.py", "experiments/mini")
    assert done.status == 2 and "baseline/teacher/metrics.jsonl: line 1: Unterminated string" in done.err


def test_a_line_that_is_being_written_does_not_matter(project):
    with open(project / "kd_nasty/nasty/metrics.jsonl", "a") as file:
        file.write('{"epoch": 13, "te')
    assert "12/160 epochs" in report.report("mini")
    assert "12/160 epochs" in report.report("experiments/mini")


def test_seeds_that_are_not_finished_show_beside_those_that_are(project):
    log(project / "kd_normal/student,seed=1", 50.0)
    student = entries(project, "json")["normal", "student"]
    assert (student["n"], student["best"], student["best_sd"], student["unfinished"]) == (1, 84.0, None, "1/2 epochs")
    assert "84.00 (+4.00) [1/2 epochs]" in report.report("mini")
