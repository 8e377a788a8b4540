"""A plan of runs, executed as Ray tasks on a local Ray instance."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import experiment, with_teacher

from study.executors import Ray
from study.launch import Runner
from study.plan import Plan, epochs_logged
from training import spec
from utils.errors import UserError

pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
pytestmark = pytest.mark.slow


def kill_whoever_trains_in(folder):
    """Kill (SIGKILL) the process that has the training.log of `folder` open, after two epochs."""
    while epochs_logged(folder) < 2:
        time.sleep(0.02)
    log = str(folder / "training.log")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == log:
                return os.kill(int(link.parts[2]), signal.SIGKILL)
        except OSError:
            continue  # the process or its file no longer exists


def test_a_killed_worker_is_replaced_and_goes_on(tmp_path):
    teacher = experiment(tmp_path / "teacher", num_epochs=40)
    student = experiment(tmp_path / "student", **with_teacher(teacher))
    runner = Runner(Plan([spec.make(student)]))
    killer = threading.Thread(target=kill_whoever_trains_in, args=(teacher,))
    executor = Ray("local", 1, "data")
    killer.start()
    runner.run(executor)
    killer.join()
    assert not runner.unfinished()
    assert epochs_logged(teacher) == 40
    assert "Continuing after epoch" in (teacher / "training.log").read_text()


def test_an_unreachable_address_is_one_line():
    with pytest.raises(UserError, match="no Ray cluster at this address"):
        Ray("127.0.0.1:1", 1, "data")
