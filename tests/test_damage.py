"""Damaged files and odd contents: a line, or the right content, but never another content or a traceback."""

import itertools
import json
import math
import random
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from projects import TINY, all_digits, experiment, script, set_root, train, with_teacher
from test_data import CLASSES, jpeg

import model
from method.image_key import load_key
from study import cards, launch, ledger, progress, publish, targets
from training import answers, params, spec
from training.changes import IGNORED
from training.folder import Run
from training.zoo import Zoo
from utils import checkpoint, data, datasets, digest
from utils.errors import UserError

DIGITS = data.DATASETS["digits"]
ASKS_FOR_MORE, SAME, NOTICED = "more epochs", "the same content", "noticed"


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A project with a run of each kind, and with every kind of file that a run or a report reads."""
    root = tmp_path_factory.mktemp("damage")
    small = {"num_channels": 2, "num_epochs": 3, "schedule": []}
    own = root / "experiments/x"
    train(experiment(own / "teacher", **small))
    train(experiment(own / "student", **with_teacher(own / "teacher"), **small, validation=0.2, test_at_end=True))
    keyed = with_teacher(own / "teacher", "adversarial", method="sdb", temperature=4) | {"weight": 1.0}
    train(experiment(own / "keyed", **keyed, **small))
    run = spec.make(own / "teacher", {"gamma": 0.2})
    spec.write(run)
    content = checkpoint.load(own / "teacher/best_model.tar")
    torch.save({"epoch": 3, "state_dict": content["state_dict"]}, root / "released.tar")
    record = publish.record_of_metrics(spec.make(own / "teacher"), ledger.read_metrics(own / "teacher/metrics.jsonl"))
    publish.write_records(root / "results/x.jsonl", [record, record | {"seed": 7}])
    made = {"defence": "nasty", "preset": "few", "score": {"mean": 0.3}, "commit": "0123456789"}
    (root / "results/x.cards.jsonl").write_text(json.dumps(digest.sealed(made)) + "\n")
    for shade, name in enumerate(CLASSES[:3]):
        jpeg(root / "images/train" / name / "images/0.JPEG", shade)
    decoded(root)
    shutil.copy(datasets.__file__.replace("datasets.py", "digits.npz"), root)
    return root


def decoded(root):
    return datasets._decoded(sorted((root / "images/train").rglob("*.JPEG")), root / "images", "train")


def used(content):
    """A dictionary without a digest whose name was changed by a byte, which no code reads."""
    is_digest = re.compile(r"[0-9a-f]{64}|\{'values': .*\}").fullmatch
    return {name: value for name, value in content.items() if not is_digest(str(value))}


def whole(path):
    values, tensors = digest.digests(used(checkpoint.load(path)))
    return values, tensors()


def header(path):
    found = checkpoint.peek(path)
    if not found:
        raise UserError("not read; the run itself loads the whole file and reports it")
    return digest.digests(used(found))[0]


def stored(path):
    """The answers in a file, which the teacher computes if there are none."""
    content, said = torch.load(stored.whole, weights_only=True), []
    own = answers.StoredAnswers(Teacher, path.parent.parent, path.parent.name, 0, said.append)
    split = data.Split(torch.zeros(len(content["answers"]), 1), torch.zeros(len(content["answers"])))
    found = own.read(data.Loader(split, DIGITS, 1))
    assert found is not None or len(said) == 1
    return (content["answers"] if found is None else found).tolist()


class Teacher:
    teacher = params = None


def planned(path):
    """A definition after its run: `Run` compares it with the checkpoint."""
    there = params.load(path.parent)
    Run(path.parent, there)
    return {name: value for name, value in vars(there).items() if name not in IGNORED}


def of_folder(path):
    return spec.of_folder(path.parent)


def metrics(path):
    return [used(epoch) for epoch in ledger.read_metrics(path)]


def records(path):
    found = ledger.read_records(path, next(VERSIONS))
    return {run: [used(record) for record in records] for run, records in found.items()}


def key(path):
    image, mix = load_key(path, 32)
    return image.tolist(), mix


def scores(path):
    return used(progress.test_scores(Folder(path.parent)))


class Folder:
    def __init__(self, folder):
        self.folder = folder


def images(path):
    return decoded(path.parent.parent).tolist()


def digits(path):
    honest, datasets.__file__ = datasets.__file__, str(path)
    try:
        return [np.asarray(part).tolist() for part in READ_DIGITS("", False)]
    finally:
        datasets.__file__ = honest


READ_DIGITS = all_digits.__wrapped__  # without the cache
VERSIONS = itertools.count()
READERS = {  # name: (file, what reads it)
    "checkpoint": ("experiments/x/teacher/best_model.tar", whole),
    "checkpoint that is planned with": ("experiments/x/teacher/last_model.tar", header),
    "released checkpoint": ("released.tar", whole),
    "key": ("experiments/x/keyed/key.tar", key),
    "answers": ("experiments/x/teacher/answers/*/epoch0001.tar", stored),
    "metrics": ("experiments/x/student/metrics.jsonl", metrics),
    "test scores": ("experiments/x/student/test.json", scores),
    "definition of a finished run": ("experiments/x/student/params.json", planned),
    "spec": ("experiments/x/teacher,gamma=0.2/spec.json", of_folder),
    "records": ("results/x.jsonl", records),
    "cards": ("results/x.cards.jsonl", lambda path: cards.read_cards("x")),
    "image cache": ("images/train.*.npy", images),
    "digits": ("digits.npz", digits),
}


def outcomes(name, project, root, count, rng):
    """[SAME, NOTICED or ASKS_FOR_MORE] of `count` changes of single bytes in a file of `root`, a copy of `project`."""
    pattern, read = READERS[name]
    (path,) = root.glob(pattern)
    honest = path.read_bytes()
    stored.whole = next(project.glob(READERS["answers"][0]))
    good, found = read(path), []
    for _ in range(count):
        changed = bytearray(honest)
        changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
        path.unlink()
        path.write_bytes(changed)
        try:
            content = read(path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1 or "  " in str(error)
            found.append(NOTICED)
            continue
        if name == "definition of a finished run" and content != good:
            assert content.pop("num_epochs") > good["num_epochs"] and content | {"num_epochs": 3} == good
            found.append(ASKS_FOR_MORE)
            continue
        assert content == good, f"{name}: another content"
        found.append(SAME)
    path.write_bytes(honest)
    return found


@pytest.mark.parametrize("name", READERS)
def test_no_changed_byte_goes_unnoticed(name, project, tmp_path, monkeypatch):
    """The digests and checksums cover every byte that is used; 40 random changes for each kind of file."""
    root = shutil.copytree(project, tmp_path / "x", dirs_exist_ok=True)
    set_root(monkeypatch, root)
    found = outcomes(name, project, root, 40, random.Random(name))
    assert len(found) == 40 and (NOTICED in found or name in ("answers", "image cache"))


# Odd contents


EPOCH = {"epoch": 1, "lr": 0.1, "train": {"loss": 2.0}, "test": {"acc": 50.0, "loss": 1.0}, "seconds": 1.0}


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "3",
        "null",
        "[" * 100_000,
        "9" * 5000,
        '{"epoch": 1, "epoch"}',
        json.dumps(EPOCH | {"epoch": 2}),
        json.dumps(EPOCH | {"epoch": None}),
        json.dumps(EPOCH | {"test": [1]}),
        json.dumps(EPOCH | {"test": {"acc": "50"}}),
        json.dumps(EPOCH | {"test": {"loss": 1.0}}),
        json.dumps(EPOCH | {"train": {"loss": None}}),
        json.dumps(EPOCH | {"seconds": "1"}),
        json.dumps(EPOCH | {"queries": [1]}),
        json.dumps(EPOCH | {"digest": 0}),
        json.dumps(EPOCH) + "\n" + json.dumps({"epoch": 2, "train": {"loss": 1.0}}),
        json.dumps(EPOCH) + json.dumps(EPOCH),
        '{"epoch": \udcff}',
    ],
    ids=lambda line: line[:40],
)
def test_odd_metrics_are_one_line(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: (some )?line") as error:
        ledger.read_metrics(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_last_line_that_was_cut_off_does_not_count(tmp_path):
    path, lines = tmp_path / "metrics.jsonl", [json.dumps(digest.sealed(EPOCH | {"epoch": n})) for n in (1, 2)]
    for length in range(len(lines[1])):
        path.write_text(f"{lines[0]}\n{lines[1][:length]}")
        assert [epoch["epoch"] for epoch in ledger.read_metrics(path)] == [1]
    path.write_text("\n".join(lines))
    assert [epoch["epoch"] for epoch in ledger.read_metrics(path)] == [1, 2]


RECORD = {"experiment": "experiments/x/teacher", "seed": 0, "train": {"loss": [2.0]}, "test": {"acc": [50.0]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"test": None},
        {"test": {"acc": []}},
        {"test": {"acc": 50.0}},
        {"test": {"acc": ["50"]}},
        {"test": {"acc": [None]}},
        {"test": {"acc": "9"}},
        {"test": {"acc": [50.0, 60.0]}},
        {"train": [1]},
        {"train": {"loss": [[1]]}},
        {"seed": 1.5},
        {"seed": "0"},
        {"seed": True},
        {"experiment": 3},
        {"changes": [1]},
        {"changes": {"a": {"b": 1}}},
        {"planned_epochs": "3"},
        {"digest": None},
    ],
    ids=str,
)
def test_odd_records_are_one_line(changes, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(RECORD) + "\n")
    assert len(ledger.records_in(path)) == 1
    path.write_text(json.dumps(RECORD | changes) + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl: line 1") as error:
        ledger.records_in(path)
    assert len(str(error.value).splitlines()) == 1


def test_lines_without_a_digest_are_read(tmp_path):
    """Records and runs from before."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps(EPOCH) + "\n")
    assert ledger.read_metrics(tmp_path / "metrics.jsonl") == [EPOCH]


CELL = ["x/teacher", 50.0]
TABLE = {"title": "t", "source": "s", "columns": ["a"], "rows": [{"name": "r", "cells": [CELL]}]}
SWEEP = {"title": "t", "source": "s", "key": "gamma", "values": [1]}
SWEEP |= {"rows": [{"name": "r", "experiment": "x/teacher", "change": "own"}]}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (3, '"t": must be an object, not 3'),
        ("nothing", '"t": there is no entry "nothing"'),
        ("t", '"t": there is no entry "t"'),
        ({}, '"t": has no "title"'),
        (TABLE | {"title": 1}, '"t": title: must be a string, not 1'),
        (TABLE | {"columns": "a"}, '"t": columns: must be a list, not "a"'),
        (TABLE | {"columns": ["a", "b"]}, '"t": row r: 1 cells for 2 columns'),
        (TABLE | {"rows": {}}, '"t": rows: must be a list'),
        (TABLE | {"rows": [{"name": "r"}]}, '"t": rows: 1: has no "cells"'),
        (
            TABLE | {"rows": [{"name": "r", "cells": [[1, 2]]}]},
            "a cell must be [experiment, published accuracy or null]",
        ),
        (TABLE | {"conclusion": {"alone": 0, "normal": 1, "nasty": 2}}, "conclusion: must be numbers of rows"),
        (SWEEP | {"values": 3}, '"t": values: must be a list, not 3'),
        (SWEEP | {"rows": [{"name": "r", "experiment": "x", "change": "both"}]}, '"change" must be own or teacher'),
        (SWEEP | {"defences": []}, '"t": has no "alone"'),
        (SWEEP | {"presets": 1}, '"t": has no "alone"'),
    ],
    ids=str,
)
def test_odd_tables_are_one_line(entry, words, project, tmp_path, monkeypatch):
    root = shutil.copytree(project, tmp_path / "x")
    set_root(monkeypatch, root)
    for good in (TABLE, SWEEP):
        (root / "experiments/tables.json").write_text(json.dumps({"t": good}))
        targets.load_table("t")
    (root / "experiments/tables.json").write_text(json.dumps({"t": entry}))
    with pytest.raises(UserError) as error:
        targets.load_table("t")
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


# Generated contents. What they found is an @example, or a case of tests/test_bad_input.py.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
few = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=100
)


def refused(function, *arguments):
    """Whether `function` raises UserError. Other errors are raised."""
    try:
        function(*arguments)
    except UserError as error:
        assert "Traceback" not in str(error)
        return True
    return False


@few
@given(
    st.dictionaries(
        st.sampled_from([*vars(params.Common)["__annotations__"], "alpha", "num_channels", "release"]), JSON
    )
)
@example({"model_name": "resnet18", "num_channels": 3})
def test_generated_params(changes):
    refused(params.check, TINY | changes, "params.json")


def tensors():
    """Tensors that a file can hold: of all kinds, with odd values."""
    values = st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, 1e300])
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64])
    dense = st.builds(
        lambda shape, value, dtype: torch.full(shape, value, dtype=torch.float64).to(dtype),
        st.sampled_from([(), (3,), (4, 3, 5, 5), (10, 128), (0, 2)]),
        values,
        dtypes,
    )
    return dense | dense.map(lambda x: x.to_sparse()) | dense.map(lambda x: x.to("meta"))


NAMES = (
    st.sampled_from([*model.build("net", 10).state_dict(), "module.fc1.bias"]) | st.text(max_size=3) | st.integers(0, 3)
)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "state_dict": st.dictionaries(NAMES, tensors(), max_size=4) | JSON,
        "params": st.dictionaries(st.sampled_from(["num_channels", "model_name", "seed"]), JSON) | JSON,
        "epoch": JSON,
        "best": st.tuples(JSON, JSON) | JSON,
        "optim_dict": JSON,
        "digests": st.just({"values": "", "tensors": ""}) | JSON,
        "extra": JSON,
        "origins": JSON,
    },
)


@few
@given(CONTENTS | JSON | tensors(), st.booleans())
def test_generated_checkpoints(tmp_path_factory, content, trained_here):
    """As a teacher, and as the checkpoint from which a run continues."""
    folder = tmp_path_factory.mktemp("x")
    path = experiment(folder / "run") / "last_model.tar"
    weights = {"state_dict": model.build("net", 10, num_channels=4).state_dict()} if trained_here else {}
    torch.save(weights | content if isinstance(content, dict) else content, path)
    refused(Zoo(DIGITS, torch.device("cpu")).frozen, "net", path)
    refused(Run, path.parent, params.load(path.parent))
    planned_runs = launch.Plan([spec.make(str(path.parent))])
    planned_runs.conflict(str(path.parent)), progress.epochs_done(str(path.parent))
    shutil.rmtree(folder)


@few
@given(
    st.lists(st.dictionaries(st.sampled_from([*EPOCH, "validation", "digest"]), JSON), max_size=3), st.text(max_size=9)
)
def test_generated_metrics(tmp_path_factory, lines, rest):
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    lines = [json.dumps(EPOCH | {"epoch": number} | line) for number, line in enumerate(lines, 1)]
    path.write_text("\n".join([*lines, rest]), encoding="utf-8")
    refused(lambda: ledger.columns(ledger.read_metrics(path) or [EPOCH]))


@few
@given(st.dictionaries(st.sampled_from([*RECORD, "changes", "planned_epochs", "digest"]), JSON))
def test_generated_records(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "x.jsonl"
    path.write_text(json.dumps(RECORD | changes) + "\n")
    refused(lambda: [sorted(record["test"]["acc"]) for found in ledger.records_in(path).values() for record in found])


WORDS = ["--set", "--seeds", "--rows", "--columns", "--presets", "--jobs", "--format", "--evaluate", "--resume"]
WORDS += [
    "--gpu_id",
    "--save_path",
    "table1_digits",
    "omega_digits",
    "matrix_digits",
    "benchmark_digits",
    "nasty",
    "kd",
]
WORDS += ["gamma=2", "seed=1", "=", "gamma=[", "method=kd", "0", "-1", "9" * 30, "..", "", "--", "-x", "*", "\udc80"]
SCRIPTS = {
    "reproduce.py": ["--dry_run"],
    "results.py": [],
    "train_scratch.py": ["--save_path", "x", "--data_dir", "nowhere"],
    "train_kd.py": ["--save_path", "x"],
}


@settings(few, max_examples=30)
@given(st.sampled_from(list(SCRIPTS)), st.lists(st.sampled_from(WORDS), max_size=5))
def test_generated_command_lines(tmp_path_factory, name, words):
    """The data set of the experiment is missing, so no run begins."""
    folder = tmp_path_factory.mktemp("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(experiment(folder / "x", dataset="cifar10").parent)
        done = script(name, *SCRIPTS[name], *words)
    assert done.status in (0, 1, 2) and "Traceback" not in done.err
    shutil.rmtree(folder)
