"""Interrupted, repeated and extended runs give the same bits as an uninterrupted run."""

import builtins
import errno
import itertools
import json
import os
import random
import resource
import signal
import time

import pytest
import torch
from processes import start
from projects import SCRIPTS, copy_code, experiment, files, metrics, same_weights, script, train

from utils.paths import read_json

KINDS = ["baseline/student", "kd_nasty/nasty", "kd_normal/student"]  # scratch, nasty, kd
LENGTH = 8  # epochs of the long runs


def same_run(folder, other):
    """Whether two run folders have the same weights and the same metrics, with one line for each epoch."""
    assert metrics(folder) == metrics(other)
    assert [line["epoch"] for line in metrics(folder)] == list(range(1, len(metrics(other)) + 1))
    return all(same_weights(folder / name, other / name) for name in ("last_model.tar", "best_model.tar"))


def copy(kind, trained, folder, **changes):
    """Copy the experiment `kind` of `trained` without its results to `folder`. The teacher stays the same file."""
    return experiment(folder, **(read_json(trained / kind / "params.json") | changes))


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A copy of the project, whose scripts see as few images as this process."""
    return copy_code(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def long(tmp_path_factory, trained):
    """An experiment of each kind, trained for `LENGTH` epochs without an interruption."""
    root = tmp_path_factory.mktemp("long")
    for kind in KINDS:
        train(copy(kind, trained, root / kind, num_epochs=LENGTH))
    return root


def epochs(folder):
    """The number of logged epochs of `folder`."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def grown(folder, num_epochs):
    """Set the number of epochs of an experiment."""
    raw = read_json(folder / "params.json") | {"num_epochs": num_epochs}
    (folder / "params.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_repeated_run(kind, trained, tmp_path):
    folder = copy(kind, trained, tmp_path / "x")
    train(folder)
    assert same_run(folder, trained / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(kind, code, trained, long, tmp_path):
    """Kill the script (SIGKILL) at a random moment after three epochs, and then train to the end."""
    folder, output, rng = copy(kind, trained, tmp_path / "x", num_epochs=LENGTH), tmp_path / "out", random.Random(kind)
    seconds = json.loads((long / kind / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    exits = []

    def continued():
        return output.read_text().count("Continuing after epoch")

    for starts, after in enumerate((2, 3, 5, None)):
        process = start(code, SCRIPTS[kind], "--save_path", folder, output=output)
        while after and process.is_alive() and (epochs(folder) < after or continued() < starts):
            time.sleep(0.001)
        if after:
            time.sleep(rng.uniform(0, seconds))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        exits.append(process.exitcode)
    assert exits == [-signal.SIGKILL] * 3 + [0], output.read_text()
    assert continued() == 3
    assert same_run(folder, long / kind)


class Killed(BaseException):
    """An exception that ends a script like a kill, because no handler catches it."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_each_write(moment, trained, tmp_path, monkeypatch):
    """End the run just before or after the first, second, … renaming of a written file, until a run reaches its end."""
    honest, kind = os.replace, "kd_nasty/nasty"
    for write in itertools.count(1):
        folder, count, killed = copy(kind, trained, tmp_path / str(write)), itertools.count(1), False

        def replace(source, target, count=count, write=write):
            this = next(count)
            if this != write or moment == "after":
                honest(source, target)
            if this == write:
                raise Killed

        monkeypatch.setattr(os, "replace", replace)
        try:
            train(folder)
        except Killed:
            killed = True
        monkeypatch.setattr(os, "replace", honest)
        train(folder)
        assert same_run(folder, trained / kind)
        if not killed:
            break
    assert write > 3  # two epochs, each with last_model.tar, and at least one best_model.tar


def test_a_metrics_line_cut_in_two_is_written_anew(trained, tmp_path):
    folder = copy("baseline/student", trained, tmp_path / "x", num_epochs=1)
    train(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "lr": 0.0')
    (folder / "params.json").write_text((trained / "baseline/student/params.json").read_text())
    train(folder)
    assert same_run(folder, trained / "baseline/student")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_130_and_says_how_to_go_on(number, code, trained, long, tmp_path):
    folder, output = copy("kd_normal/student", trained, tmp_path / "x", num_epochs=LENGTH), tmp_path / "out"
    process = start(code, "train_kd.py", "--save_path", folder, output=output)
    while process.is_alive() and epochs(folder) < 2:
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130
    assert "same command" in output.read_text().splitlines()[-1]
    assert "Traceback" not in output.read_text() + (folder / "training.log").read_text()
    assert not list(folder.glob("*.tmp"))
    train(folder)
    assert same_run(folder, long / "kd_normal/student")


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_says_so_and_changes_nothing(kind, trained):
    before = files(trained)
    done = train(trained / kind)
    assert "finished" in done.out and "best acc" in done.out
    assert files(trained) == before


def test_a_folder_belongs_to_one_process(code, trained, tmp_path):
    folder = copy("baseline/student", trained, tmp_path / "x", num_epochs=10_000)
    process = start(code, "train_scratch.py", "--save_path", folder, output=tmp_path / "out")
    while process.is_alive() and epochs(folder) < 1:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        before = files(folder)
        second = script("train_scratch.py", "--save_path", folder)
        assert files(folder) == before
    finally:
        process.kill()
        process.join()
    assert second.status == 2 and "another process is training here" in second.err
    assert len(second.err.splitlines()) == 1


def test_checkpoints_say_how_far_they_are_and_which_is_best(long):
    for kind in KINDS:
        lines = metrics(long / kind)
        best = max(range(LENGTH), key=lambda i, lines=lines: (lines[i]["test"]["acc"], i))
        state = torch.load(long / kind / "best_model.tar", weights_only=True)
        assert state["epoch"] == best + 1
        assert tuple(state["best"]) == (best, lines[best]["test"]["acc"])
        assert torch.load(long / kind / "last_model.tar", weights_only=True)["epoch"] == LENGTH


@pytest.mark.parametrize(("name", "saved"), [("best_model.tar.tmp", 2), ("last_model.tar.tmp", 1)])
def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(name, saved, trained, tmp_path):
    """Writing to /dev/full fails like writing to a full disk. saved: epochs; last_model.tar is written first."""
    whole = trained / "kd_nasty/student"
    assert metrics(whole)[0]["test"]["acc"] < metrics(whole)[1]["test"]["acc"]  # so both files are written again
    folder = copy("kd_nasty/student", trained, tmp_path / "x", num_epochs=1)
    train(folder)
    (folder / "params.json").write_text((whole / "params.json").read_text())
    (folder / name).symlink_to("/dev/full")
    done = script("train_kd.py", "--save_path", folder)
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert "No space left" in done.err and "x" in done.err
    assert torch.load(folder / "last_model.tar")["epoch"] == saved
    (folder / name).unlink(missing_ok=True)
    train(folder)
    assert same_run(folder, whole)


def goes_on_after(failed, folder, trained):
    """The run in `folder` failed in one line. Repeated, it is that of `trained`, as if it had not."""
    assert failed.status == 2 and len(failed.err.splitlines()) == 1 and str(folder) in failed.err, failed
    assert not list(folder.glob("*.tmp"))
    train(folder)
    return same_run(folder, trained / "baseline/student")


@pytest.mark.parametrize("size", [0, 100, 300, 700, 1500, 4000, 20_000])
def test_a_file_that_cannot_grow_ends_in_one_line_and_the_run_goes_on_afterwards(size, trained, tmp_path):
    """A limit of the size of files fails like a full disk: in training.log, in metrics.jsonl, or in a checkpoint."""
    folder, before = copy("baseline/student", trained, tmp_path / "x"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        failed = script("train_scratch.py", "--save_path", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in failed.err and goes_on_after(failed, folder, trained)


def test_a_folder_that_becomes_read_only_at_any_write(trained, tmp_path, monkeypatch):
    """From the first, second, … opening of a file for writing on, until none fails."""
    honest = builtins.open
    for good in itertools.count():
        folder, opened = copy("baseline/student", trained, tmp_path / str(good)), itertools.count()

        def read_only(file, mode="r", *args, opened=opened, folder=folder, good=good, **options):
            if set(mode) & set("wa") and str(file).startswith(str(folder)) and next(opened) >= good:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
            return honest(file, mode, *args, **options)

        monkeypatch.setattr(builtins, "open", read_only)
        done = script("train_scratch.py", "--save_path", folder)
        monkeypatch.setattr(builtins, "open", honest)
        if done.status == 0:
            break
        assert "Read-only file system" in done.err and goes_on_after(done, folder, trained)
    assert good > 5  # training.log; of two epochs, metrics.jsonl and last_model.tar; at least one best_model.tar


def test_a_reader_who_has_enough_ends_the_run(code, tmp_path):
    """`python train_scratch.py … | head -n 1` prints no error, and the run can be continued."""
    folder = experiment(tmp_path / "x", num_epochs=5000)
    pipe, printed = tmp_path / "pipe", tmp_path / "errors"
    os.mkfifo(pipe)
    process = start(code, "train_scratch.py", "--save_path", folder, output=pipe, errors=printed)
    with open(pipe) as reader:
        reader.readline()
    process.join()
    errors = printed.read_text()
    assert process.exitcode == 141 and "Traceback" not in errors and "Logging error" not in errors
    assert "Traceback" not in (folder / "training.log").read_text() and epochs(folder) < 5000
    train(grown(folder, 1))
