"""Tables of accuracies are compared with numbers computed by hand: of the paper, of records and of run folders."""

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from projects import experiment, grid, grow, local, log, recorded, script, set_root, with_teacher

from study import intervals, report
from study.entries import entry_of
from study.formats import FORMATS, STYLES
from study.ledger import Local, Recorded, Summary
from study.tables import Cell
from training import spec

# 0.975 quantiles of Student's t from a textbook: {degrees of freedom: quantile}
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
    "template": {"defended": "mini/kd_nasty/student", "undefended": "mini/kd_normal/student"},
    "yardstick": {"label_smoothing": 0.1},
    "attacks": {"kd": {}, "hotter": {"temperature": 50}},
    "defences": {"normal": "mini/kd_normal/student", "nasty": "mini/kd_nasty/student"},
}
ALONE, NORMAL = "experiments/mini/baseline/student", "experiments/mini/kd_normal/student"


def fill(make):
    """Make runs of MINI: 3 seeds of the baseline, 2 of a student, 1 of a teacher. make: `local` or `recorded`."""
    for seed, best in (0, 80.0), (1, 82.0), (2, 87.0):
        make(ALONE, best, best - 0.5, seed=seed)
    make("experiments/mini/baseline/teacher", 91.0, 91.5)
    for seed, best in (0, 84.0), (1, 85.0):
        make(NORMAL, 1.0, best, seed=seed)


def fill_matrix(make):
    """Make runs of MATRIX: the yardstick, and the other attack on the normal teacher. make: `local` or `recorded`."""
    for seed, best in (0, 83.5), (1, 84.5):
        make(ALONE, best, 83.25, changes={"label_smoothing": 0.1}, seed=seed)
        make(NORMAL, 85.0, 86.0, changes={"temperature": 50}, seed=seed)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A project root with the tables MINI and MATRIX, without runs."""
    set_root(monkeypatch, tmp_path)
    root = tmp_path / "experiments/mini"
    grow(root, Path("experiments/mini"))
    raw = json.loads((root / "kd_nasty/nasty/params.json").read_text())
    (root / "kd_nasty/nasty/params.json").write_text(json.dumps(raw | {"num_epochs": 160}))
    (tmp_path / "experiments/tables.json").write_text(json.dumps({"mini": MINI, "other": "mini", "matrix": MATRIX}))
    return root


@pytest.fixture
def project(empty):
    """A project root with local runs. The run of the nasty teacher is not finished."""
    fill(local)
    log(empty / "kd_nasty/nasty", *range(12))
    return empty


@pytest.fixture
def matrix(project):
    fill_matrix(local)
    return project


@pytest.mark.parametrize("freedom", QUANTILES)
def test_quantiles_of_t(freedom):
    assert intervals.t_975(freedom) == pytest.approx(QUANTILES[freedom], abs=6e-4)


@pytest.mark.parametrize(
    ("accuracies", "mean", "half_width"),
    [
        ([80, 82], 81, 12.706 * math.sqrt(2) * math.sqrt(3 / 2)),  # s² = (1 + 1) / 1
        ([80, 82, 87], 83, 4.303 * math.sqrt(13) * math.sqrt(4 / 3)),  # s² = (9 + 1 + 16) / 2
        ([70, 71, 72, 73, 74], 72, 2.776 * math.sqrt(2.5) * math.sqrt(6 / 5)),  # s² = (4 + 1 + 0 + 1 + 4) / 4
    ],
)
def test_prediction_interval(accuracies, mean, half_width):
    assert intervals.mean(accuracies) == mean
    for sign in (-1, 1):
        assert intervals.in_prediction_interval(mean + sign * 0.999 * half_width, accuracies) is True
        assert intervals.in_prediction_interval(mean + sign * 1.001 * half_width, accuracies) is False


def test_no_interval_without_two_runs_or_a_published_number():
    assert intervals.in_prediction_interval(80, [80]) is None
    assert intervals.in_prediction_interval(None, [80, 81]) is None


@pytest.mark.parametrize(
    ("accuracies", "half_width"),
    [
        ([80, 82], 12.706 * math.sqrt(2) / math.sqrt(2)),
        ([80, 82, 87], 4.303 * math.sqrt(13) / math.sqrt(3)),
    ],
)
def test_confidence_interval(accuracies, half_width):
    assert intervals.half_width(accuracies) == pytest.approx(half_width)
    assert intervals.half_width(accuracies[:1]) is None


def test_gains_are_between_runs_of_the_same_seed():
    one, other = Summary({0: 84.0, 2: 85.0, 3: 1.0}), Summary({2: 82.0, 0: 80.0, 1: 90.0})
    assert one.gains(other) == [4.0, 3.0]


def entries(style, target="mini", source="yours"):
    """{(row, column): entry} of the table, read from JSON or CSV."""
    text = report.report(target, style)
    found = json.loads(text) if style == "json" else list(csv.DictReader(io.StringIO(text)))
    return {(entry["row"], entry["column"]): entry for entry in found if entry["source"] == source}


SOURCES = {"here": recorded, "yours": local}


@pytest.mark.parametrize("style", ["json", "csv"])
@pytest.mark.parametrize("source", SOURCES)
def test_numbers(empty, style, source):
    fill(SOURCES[source])
    cells = entries(style, source=source)
    assert len(cells) == 5
    alone = cells["student baseline", "student"]
    assert [float(alone[name]) for name in ("n", "best", "last")] == pytest.approx([3, 83.0, 82.5])
    assert float(alone["best_sd"]) == pytest.approx(math.sqrt(13)) == float(alone["last_sd"])
    assert alone["difference"] in (None, "") and alone["teacher"] == ""
    assert alone["published_inside"] in (True, "True")  # 83 ± 17.9 holds 70
    student = cells["normal", "student"]
    assert float(student["best"]) == 84.5 and float(student["difference"]) == pytest.approx(3.5)
    assert float(student["difference_sd"]) == pytest.approx(math.sqrt(0.5))  # differences 84 − 80 and 85 − 82
    assert float(student["published_difference"]) == pytest.approx(3.5)
    assert student["teacher"] == "teacher" and student["published_inside"] in (True, "True")  # 84.5 ± 11.003
    teacher = cells["normal", "teacher"]
    assert float(teacher["best"]) == 91.5 and teacher["best_sd"] in (None, "")
    missing = cells["nasty", "student"]
    assert missing["best"] in (None, "") and missing["unfinished"] == "" and float(missing["published"]) == 61
    other = "here" if source == "yours" else "yours"
    assert all(entry["best"] in (None, "") for entry in entries(style, source=other).values())


def test_sources_are_never_averaged_together(empty):
    fill(recorded)
    local(ALONE, 60.0, 61.0, seed=1)  # the records have 80, 82 and 87
    local(NORMAL, 64.0, 63.0, seed=1)  # the records have 84 and 85
    alone = {source: entries("json", source=source)["student baseline", "student"] for source in SOURCES}
    student = {source: entries("json", source=source)["normal", "student"] for source in SOURCES}
    assert [(alone[source]["n"], alone[source]["best"]) for source in SOURCES] == [(3, 83.0), (1, 61.0)]
    assert [(student[source]["best"], student[source]["difference"]) for source in SOURCES] == [(84.5, 3.5), (64, 3)]
    for target in "mini", "experiments/mini", "matrix":
        text = report.report(target)
        for mean in (80 + 82 + 87 + 61) / 4, (80 + 61 + 87) / 3, (84 + 85 + 64) / 3, (84 + 64) / 2, (82 + 61) / 2:
            assert f"{mean:.2f}" not in text
    assert [row[0:2] + row[3:] for row in grid(report.report("mini", "markdown"))[2:7]] == [
        ["student baseline", "paper", "70.00"],
        ["", "here best", "83.00 ± 3.61 n=3"],
        ["", "last", "82.50 ± 3.61"],
        ["", "yours best", "61.00"],
        ["", "last", "61.00"],
    ]


def test_unfinished(project):
    teacher = entries("json")["nasty", "teacher"]
    assert teacher["best"] is None and teacher["unfinished"] == "12/160 epochs"


def test_markdown(project):
    header, rule, *rows = grid(report.report("mini", "markdown"))
    assert header == ["", "", "teacher", "student"] and all(set(cell) <= set(":-") for cell in rule)
    assert rows == [
        ["student baseline", "paper", "", "70.00"],
        ["", "yours best", "", "83.00 ± 3.61 n=3"],
        ["", "last", "", "82.50 ± 3.61"],
        ["normal", "paper", "90.00", "73.50 (+3.50)"],
        ["", "yours best", "91.50", "84.50 ± 0.71 (+3.50) n=2"],
        ["", "last", "91.50", "84.50 ± 0.71"],
        ["nasty", "paper", "89.00", "61.00 (-9.00)"],
        ["", "yours best", "12/160 epochs", "–"],
        ["", "last", "", ""],
    ]


def test_the_conclusion_of_a_table(empty):
    """A sentence below the table states the accuracy that the defence costs, and the change of its students."""
    conclusion = {"alone": 0, "normal": 1, "nasty": 2}
    targets = {"mini": MINI | {"conclusion": conclusion}}
    (empty.parent / "tables.json").write_text(json.dumps(targets))
    fill(local)
    assert "yours (" not in report.report("mini")  # the nasty teacher is missing
    local("experiments/mini/kd_nasty/nasty", *[90.0] * 160)
    local("experiments/mini/kd_nasty/student", 75.0, 75.0, seed=3)
    assert "yours (" not in report.report("mini")  # no seed in common with the baseline
    shutil.rmtree(empty / "kd_nasty/student,seed=3")
    for seed, student in (0, 75.0), (1, 76.0):
        local("experiments/mini/kd_nasty/nasty", *[90.0] * 160, seed=seed)
        local("experiments/mini/kd_nasty/student", student, student, seed=seed)
    lines = report.report("mini").splitlines()
    assert lines[-1] == (  # students: 75 − 80 and 76 − 82, 84 − 80 and 85 − 82
        "yours (1 seed): at the last epoch, the nasty teacher is 1.5 points less accurate than the normal teacher. "
        "Compared with the same students without a teacher, students of the nasty teacher are 5.5 points worse, and "
        "students of the normal teacher are 3.5 points better."
    )


@pytest.mark.parametrize("source", SOURCES)
def test_matrix(empty, source):
    fill(SOURCES[source])
    fill_matrix(SOURCES[source])
    log(empty / "kd_nasty/nasty", *range(12))
    text = report.report("matrix", "markdown")
    header, _, *rows = grid(text)
    assert header == ["defence", "", "teacher", "kd", "hotter", "strongest attack", "minus yardstick"]
    assert rows == [  # alone: 80, 82 and 87; with label smoothing: 83.5 and 84.5
        ["normal", source, "91.50", "+3.50 ± 0.71", "+5.00 ± 1.41", "hotter +5.00 ± 1.41", "+2.00"],
        ["nasty", "yours", "12/160 epochs", "–", "–", "", ""],
    ]
    about = f"{source}: alone 83.00 ± 3.61 n=3; yardstick (label_smoothing 0.1) 84.00 ± 0.71 (+3.00) n=2."
    assert about in text.splitlines()


def test_a_matrix_compares_only_what_has_as_many_seeds(matrix):
    (matrix / "baseline/student,label_smoothing=0.1,seed=1/metrics.jsonl").unlink()
    assert grid(report.report("matrix", "markdown"))[2][-2:] == ["hotter +5.00 ± 1.41", ""]
    (matrix / "kd_normal/student,seed=1,temperature=50/metrics.jsonl").unlink()
    assert grid(report.report("matrix", "markdown"))[2][-3:] == ["+6.00", "", ""]


def test_an_attack_that_was_not_run_leaves_the_strongest_one_as_it_is(matrix):
    before = grid(report.report("matrix", "markdown"))
    after = grid(report.report("matrix", "markdown", columns=["scm"]))
    assert after[0] == ["defence", "", "teacher", "kd", "hotter", "scm", "strongest attack", "minus yardstick"]
    assert [row[:5] + row[6:] for row in after] == before and [row[5] for row in after[2:]] == ["–", "–"]
    assert grid(report.report("matrix", "markdown", columns=["kd", "hotter"])) == before
    (matrix / "kd_normal/student,temperature=50/metrics.jsonl").unlink()
    (matrix / "kd_normal/student,seed=1,temperature=50/metrics.jsonl").unlink()
    local(NORMAL, 85.0, 86.0, changes={"method": "scm"})
    assert grid(report.report("matrix", "markdown", columns=["scm"]))[2][5:] == ["+6.00", "", ""]


@pytest.mark.parametrize("style", ["json", "csv"])
def test_numbers_of_a_matrix(matrix, style):
    cells = entries(style, "matrix")
    assert len(cells) == 2 + 2 * 3
    found = {place: float(cell["best"]) for place, cell in cells.items() if cell["best"] not in (None, "")}
    assert found == {
        ("alone", "student"): 83.0,
        ("yardstick", "student"): 84.0,
        ("normal", "teacher"): 91.5,
        ("normal", "kd"): 84.5,
        ("normal", "hotter"): 86.0,
    }


@pytest.mark.parametrize("style", FORMATS)
def test_a_matrix_of_which_nothing_has_run(empty, style):
    text = report.report("matrix", style)
    assert "normal" in text and ("not yet run" in text) == (style in STYLES)


def test_latex(project):
    text = report.report("mini", "latex")
    head, body = text.split(r"\begin{tabular}")
    body, tail = body.split(r"\end{tabular}")
    # Everything outside the table is a comment
    assert all(line.startswith("%") for line in (head + tail).splitlines() if line)
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 10 and all(len(re.findall(r"(?<!\\)&", row)) == 3 for row in rows)
    assert not re.search(r"(?<!\\)[%#_]", body)


def test_runs_with_common_changes(matrix):
    """The baseline has the same changes. Published numbers stay. A change without effect is left out."""
    changes = {"momentum": 0.8, "gamma": 0.1}
    before = grid(report.report("experiments/mini", "markdown", common=changes))
    local(ALONE, 60.0, 60.0, common=changes)
    student = local(NORMAL, 61.0, 62.0, common=changes)
    local(NORMAL, 63.0, 1.0, changes={"temperature": 50}, common=changes)
    assert (matrix / "baseline/student,momentum=0.8").exists() and student.name == "student,all.momentum=0.8"
    _, _, *rows = grid(report.report("mini", "markdown", common=changes))
    assert rows[0][3] == "70.00" and rows[1][3] == "60.00"
    assert rows[3] == ["normal", "paper", "90.00", "73.50 (+3.50)"]
    assert rows[4] == ["", "yours best", "–", "62.00 (+2.00)"]
    assert "Changed keys: momentum 0.8, gamma 0.1." in report.report("mini", "text", common=changes)
    assert grid(report.report("matrix", "markdown", common=changes))[2][3:5] == ["+2.00", "+3.00"]
    folder = {row[0]: row for row in grid(report.report("experiments/mini", "markdown", common=changes))}
    assert folder.keys() == {row[0] for row in before}
    name = "mini/kd_normal/student,all.momentum=0.8"
    assert folder[name] == [name, "teacher,momentum=0.8", "yours", "62.00", "62.00", "+2.00", "73.50", "1"]


def test_text(project):
    text = report.report("mini")
    assert MINI["title"] in text and MINI["source"] in text
    for words in ("83.00 ± 3.61 n=3", "84.50 ± 0.71 (+3.50) n=2", "12/160 epochs", "–", "61.00 (-9.00)"):
        assert words in text


def test_another_word_for_a_target(project):
    assert report.report("other") == report.report("mini")


@pytest.mark.parametrize("style", FORMATS)
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
        rows = {row[0]: row[1:] for row in grid(done.out)}
        assert rows["mini/baseline/student"] == ["", "yours", "83.00 ± 3.61", "82.50 ± 3.61", "", "70.00", "3"]
        assert rows["mini/kd_nasty/nasty"][:3] == ["teacher", "yours", "12/160 epochs"]
        assert rows["mini/kd_nasty/student"][1:3] == ["", "–"]
    else:
        assert "83.00" in done.out and "12/160 epochs" in done.out


def test_a_run_in_a_folder_is_shown_from_both_sources(project):
    recorded(NORMAL, 70.0, 71.0)
    rows = [row for row in grid(report.report("experiments/mini", "markdown")) if row[0] == "mini/kd_normal/student"]
    assert [row[2:5] for row in rows] == [["here", "71.00", "71.00"], ["yours", "84.50 ± 0.71", "84.50 ± 0.71"]]


def test_a_run_with_another_teacher_and_one_beside_its_folder(project):
    other = "experiments/mini/kd_nasty/nasty/best_model.tar"
    local(NORMAL, 77.0, changes={"num_epochs": 1, "teacher_resume": other})
    (changed,) = (project / "kd_normal").glob("student,num_epochs=1,*")
    rows = {row[0]: row for row in grid(report.report("experiments/mini/kd_normal/student", "markdown"))}
    assert rows["mini/kd_normal/student"][1:4] == ["teacher", "yours", "84.50 ± 0.71"]
    assert rows[f"mini/kd_normal/{changed.name}"][1:4] == ["nasty", "yours", "77.00"]


def test_the_published_number_is_not_that_of_a_changed_run(project):
    local(NORMAL, 77.0, 77.0, teacher_changes={"momentum": 0.8})
    rows = {row[0]: row for row in grid(report.report("experiments/mini/kd_normal", "markdown"))}
    assert [rows[f"mini/kd_normal/student{tag}"][6] for tag in ("", ",teacher.momentum=0.8")] == ["73.50", ""]


def test_validation_and_test_images_are_not_compared(project):
    path = local(NORMAL, 75.0, 75.0, changes={"validation": 0.2}) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"test"', '"validation"'))
    entry = entry_of(Cell(spec.make(NORMAL, changes={"validation": 0.2}), part="validation"), Local())
    assert (entry["best"], entry["difference"]) == (75.0, None)  # the baseline has test images only


def test_a_baseline_is_one_with_defaults_written_out(project):
    raw = with_teacher(Path("experiments/mini/baseline/teacher"), dropout_rate=0.0)
    log(experiment(project / "kd_normal/another", **raw), 1.0, 83.0)
    rows = {row[0]: row for row in grid(report.report("experiments/mini/kd_normal", "markdown"))}
    assert rows["mini/kd_normal/another"][5] == "+3.00"  # relative to the student alone with seed 0, 80


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
    student = entries("json")["normal", "student"]
    assert (student["n"], student["best"], student["best_sd"], student["unfinished"]) == (1, 84.0, None, "1/2 epochs")
    assert "84.00 (+4.00) [1/2 epochs]" in report.report("mini")


def test_what_a_selection_shows(matrix):
    """If only new columns or rows are selected, they come last. Any other selection is shown alone."""

    def shown(**selection):
        header, _, *rows = grid(report.report("matrix", "markdown", **selection))
        return header[3:-2], [row[0] for row in rows]

    assert shown(columns=["scm"]) == (["kd", "hotter", "scm"], ["normal", "nasty"])
    assert shown(columns=["scm", "kd"]) == (["scm", "kd"], ["normal", "nasty"])
    assert shown(rows=["possessive"]) == (["kd", "hotter"], ["normal", "nasty", "possessive"])
    assert shown(rows=["nasty"], columns=["scm"]) == (["scm"], ["nasty"])


def test_a_report_of_one_source(empty):
    fill(recorded)
    local(ALONE, 60.0, 61.25)
    assert "61.25" in report.report("mini") and "61.25" not in report.report("mini", sources=[Recorded()])
    assert "61.25" not in report.report("experiments/mini", sources=[Recorded()])
