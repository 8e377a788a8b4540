"""A new file in method/ gives a row or column of a matrix, without any other change to the project."""

import json
import re
import shutil
from pathlib import Path

import pytest
from processes import command, commands
from projects import ROOT, copy_code, grow, recorded, set_root

FREE = '''"""Free: a test's defence without an adversarial network, 2031.

min_f  CE(σ(f(x)), y) + strength · mean f(x)²
"""

from dataclasses import dataclass

from method import Method
from utils.keys import key
from utils.losses import cross_entropy


class Free(Method):
    @dataclass
    class Params:
        strength: float = key("weight of the squared logits", default=0.01, low=0)
        temperature: float = key("another default than that of the replaced defence's experiment", default=2.0, above=0)

    def losses(self, images, labels):
        logits = self.model(images)
        ce = cross_entropy(logits, labels)
        squares = logits.square().mean()
        return {"loss": ce + self.params.strength * squares, "ce": ce, "squares": squares}
'''
AGAINST = '''"""Against: a test's defence with an adversarial network, 2031.

min_f  CE(σ(f(x)), y) − ω T² KL( σ_T(f(x)) ‖ σ_T(f_A(x)) )
"""

from dataclasses import dataclass

from method.defend import nasty
from utils.keys import key


class Against(nasty.Nasty):
    @dataclass
    class Params(nasty.Nasty.Params):
        weight: float = key("ω, another default than that of the replaced defence's experiment", default=0.05, low=0)
'''
RULE = '''"""Rule: a test's release rule, 2031.

t'(x) = scale · t(x)
"""

from dataclasses import dataclass

from method.release import Release
from utils.keys import key


class Rule(Release):
    @dataclass
    class Params:
        scale: float = key("factor of the logits", default=0.5, above=0)

    def answer(self, logits):
        return self.params.scale * logits
'''
THIEF = '''"""Thief: a test's attack, 2031.

min_s  the loss of kd + hardness · CE(σ(s(x)), t(x)'s most likely class)
"""

from dataclasses import dataclass

from method.attack import kd
from utils.keys import key
from utils.losses import cross_entropy


class Thief(kd.KD):
    @dataclass
    class Params(kd.KD.Params):
        hardness: float = key("weight of the teacher's label", default=0.5, low=0)

    def losses(self, images, labels):
        terms = super().losses(images, labels)
        hard = cross_entropy(self.model(images), self.teacher(images).argmax(1))
        return terms | {"loss": terms["loss"] + self.params.hardness * hard, "hard": hard}
'''
FILES = {"defend/free": FREE, "defend/against": AGAINST, "defend/rule": RULE, "attack/thief": THIEF}
MATRIX = {
    "title": "A matrix",
    "source": "nobody, 2022",
    "alone": "mini/baseline/student",
    "template": {"defended": "mini/kd_nasty/student", "undefended": "mini/kd_normal/student"},
    "yardstick": {"label_smoothing": 0.1},
    "attacks": {"kd": {"temperature": 8}, "scm": {"method": "scm"}},
    "defences": {"none": "mini/kd_normal/student", "nasty": "mini/kd_nasty/student"},
}
ALONE, STUDENT = "experiments/mini/baseline/student", "experiments/mini/kd_nasty/student"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with new files, a matrix of tiny experiments, and records of the row `nasty`."""
    root = copy_code(tmp_path_factory.mktemp("project"))
    for name, text in FILES.items():
        (root / f"method/{name}.py").write_text(text)
    grow(root / "experiments/mini", Path("experiments/mini"), num_epochs=1)
    (root / "experiments/tables.json").write_text(json.dumps({"matrix": MATRIX}))
    with pytest.MonkeyPatch.context() as patch:
        set_root(patch, root)
        recorded(ALONE, 80.0)
        recorded(ALONE, 81.0, changes={"label_smoothing": 0.1})
        recorded("experiments/mini/kd_nasty/nasty", 90.0)
        recorded(STUDENT, 75.0, changes={"temperature": 8})
        recorded(STUDENT, 77.0, changes={"method": "scm"})
    return root


def planned(done):
    """{folder of a run: folders of the runs that it needs} of a dry run, below experiments/mini."""
    assert done.status == 0, done.err
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.out.splitlines()[2:-2]]
    short = [[cell.replace("experiments/mini/", "") for cell in row] for row in rows]
    return {row[0]: row[2].split(", ") if len(row) > 2 else [] for row in short}


def lines_of(text):
    """{(defence, source): the other cells} of a printed matrix."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.partition("---\n")[2].splitlines()]
    return {tuple(row[:2]): row[2:] for row in rows if len(row) > 3}


OWN = {"baseline/student": [], "baseline/student,label_smoothing=0.1": []}


def test_plans(project):
    """Only the teachers and students of the new row or column are planned."""
    free, against, rule, thief, changed = commands(
        project,
        "reproduce.py matrix --dry_run --rows free",
        "reproduce.py matrix --dry_run --rows against --columns kd",
        "reproduce.py matrix --dry_run --rows rule",
        "reproduce.py matrix --dry_run --columns thief",
        "reproduce.py matrix --dry_run --rows free --columns thief "
        "--set strength=0.3 hardness=0.1 temperature=3 gamma=0.5",
    )
    # `free` loads no network. Its default temperature replaces the temperature 4 of the template.
    teacher = "kd_nasty/nasty,method=free,temperature=2"
    student = "kd_nasty/student,{}teacher.method=free,teacher.temperature=2{}"
    assert planned(free) == OWN | {
        teacher: [],
        student.format("", ",temperature=8"): [teacher],
        student.format("method=scm,", ""): [teacher],
    }
    teacher = "kd_nasty/nasty,method=against,weight=0.05"
    assert planned(against) == OWN | {
        "baseline/teacher": [],
        teacher: ["baseline/teacher"],
        "kd_nasty/student,teacher.method=against,teacher.weight=0.05,temperature=8": [teacher],
    }
    assert planned(rule) == OWN | {
        "baseline/teacher": [],
        "kd_normal/student,release=rule,temperature=8": ["baseline/teacher"],
        "kd_normal/student,method=scm,release=rule": ["baseline/teacher"],
    }
    # `thief` has no default temperature, so it has the temperature of `kd` for every teacher.
    assert planned(thief) == OWN | {
        "baseline/teacher": [],
        "kd_nasty/nasty": ["baseline/teacher"],
        "kd_normal/student,method=thief,temperature=8": ["baseline/teacher"],
        "kd_nasty/student,method=thief,temperature=8": ["kd_nasty/nasty"],
    }
    # --set changes keys of new files only in these, and all other keys in every run
    teacher = "kd_nasty/nasty,gamma=0.5,method=free,strength=0.3,temperature=3"
    student = (
        "kd_nasty/student,all.gamma=0.5,hardness=0.1,method=thief,"
        "teacher.method=free,teacher.strength=0.3,teacher.temperature=3,temperature=3"
    )
    own = {"baseline/student,gamma=0.5": [], "baseline/student,gamma=0.5,label_smoothing=0.1": []}
    assert planned(changed) == own | {teacher: [], student: [teacher]}


MISTAKES = {
    "--rows fre": '--rows fre: no such defence; there are against, cmim, free, mad, mildly_nasty, modelguard, nasty, none, perturb, poe, possessive, reverse_sigmoid, rule, sdb, stingy; did you mean "free"?',  # noqa: E501
    "--columns theif": '--columns theif: no such attack; there are averager, dafl, deepinversion, dfad, dkd, fast_datafree, hard_label, htc, kd, logit_std, mkd, recover, scm, skeptical, thief; did you mean "thief"?',  # noqa: E501
    "--rows thief": "; use --columns thief",
    "--columns free": "; use --rows free",
    "--rows free --set strenght=1": 'did you mean "strength"?',
    "--rows free --set num_epoch=1": 'did you mean "num_epochs"?',
    "--rows free --set strength=-1": '"strength": must be at least 0, not -1',
    "--rows free --set num_epochs=0": '"num_epochs": must be at least 1, not 0',
    "--rows nasty --set strength=1": "--set strength: cannot be changed in all runs",
}


def test_mistakes(project):
    results = commands(project, *(f"{name} matrix {flags}" for flags in MISTAKES for name in SCRIPTS))
    for number, (flags, words) in enumerate(MISTAKES.items()):
        for name, done in zip(SCRIPTS, results[2 * number :], strict=False):
            if name == "results.py" and "must be" in words:
                continue  # it builds no run
            assert done.status == 2 and done.err.count("\n") == 1, (name, flags, done.out, done.err)
            assert done.err.rstrip("\n").endswith(words) or words in done.err, (name, flags, done.err)


SCRIPTS = ("reproduce.py", "results.py")


def test_a_file_without_a_method(project):
    for kind in "defend", "attack":
        (project / f"method/{kind}/hollow.py").write_text("from method import Method\n")
    row, column = commands(project, "results.py matrix --rows hollow", "results.py matrix --columns hollow")
    for kind in "defend", "attack":
        (project / f"method/{kind}/hollow.py").unlink()
    assert (row.status, column.status) == (2, 2)
    assert row.err == "--rows hollow: method/defend/hollow.py defines no subclass of Method or Release\n"
    assert column.err == "--columns hollow: method/attack/hollow.py defines no subclass of Attack\n"


@pytest.fixture(scope="module")
def ran(project):
    """What `reproduce.py` prints for all new rows with all attacks, and then for the new column."""
    rows = command(project, "reproduce.py", "matrix", "--rows", "free", "against", "rule", "--jobs", "2")
    columns = command(project, "reproduce.py", "matrix", "--columns", "thief", "--jobs", "2", "--set", "hardness=0.1")
    return rows, columns


@pytest.mark.slow
def test_new_rows_run_and_stand_beside_the_recorded_ones(ran):
    done, _ = ran
    assert done.status == 0, done.err
    rows = lines_of(done.out)
    assert rows.keys() >= {("nasty", "here"), ("free", "yours"), ("against", "yours"), ("rule", "yours")}
    assert rows["nasty", "here"] == ["90.00", "-5.00", "-3.00", "scm -3.00", "-4.00"]
    for name in "free", "against", "rule":
        teacher, kd, scm, strongest, yardstick = rows[name, "yours"]
        assert 0 <= float(teacher) <= 100 and strongest.endswith(max(kd, scm, key=float)) and float(yardstick) < 100


@pytest.mark.slow
def test_a_new_column_runs_and_stands_beside_the_recorded_ones(ran):
    _, done = ran
    assert done.status == 0, done.err
    assert re.search(r"defence +teacher +kd +scm +thief +strongest attack", done.out)
    rows = lines_of(done.out)
    assert rows["nasty", "here"] == ["90.00", "-5.00", "-3.00", "–", "scm -3.00", "-4.00"]
    for name in "none", "nasty":
        assert rows[name, "yours"][1:3] == ["–", "–"] and re.fullmatch(r"[+-]\d+\.\d\d", rows[name, "yours"][3])


@pytest.mark.slow
def test_parameters_of_the_runs(project, ran):
    folders = {path.parent.name: path for path in (project / "experiments/mini/kd_nasty").glob("*/params.json")}
    free = json.loads(folders["nasty,method=free,temperature=2"].read_text())
    assert free["method"] == "free" and free["temperature"] == 2
    assert not {"adversarial_model", "adversarial_resume", "weight"} & free.keys()
    student = json.loads(folders["student,hardness=0.1,method=thief,temperature=8"].read_text())
    assert (student["method"], student["hardness"], student["temperature"], student["alpha"]) == ("thief", 0.1, 8, 0.9)
    assert all(path.with_name("last_model.tar").exists() for path in folders.values() if "=" in path.parent.name)


@pytest.mark.slow
def test_the_method_tests_cover_the_new_files(project):
    (project / "tests").mkdir()
    for name in ("conftest.py", "processes.py", "projects.py", "test_methods.py"):
        shutil.copy(ROOT / "tests" / name, project / "tests")
    names = "(two_epochs or every_attack) and (free or against or rule or thief)"
    done = command(project, "-m", "pytest", "-n", "0", "tests/test_methods.py", "-k", names, "-rA")
    assert done.status == 0, done.out
    for name in "free", "against", "rule", "thief":
        assert re.search(rf"PASSED .*test_two_epochs\[(kd )?{name}\b", done.out), name
