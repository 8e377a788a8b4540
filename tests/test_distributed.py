"""A run with two processes, as torchrun starts them, compared with one process; and a plan of runs as Ray tasks."""

import contextlib
import functools
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import TESTS, command, share_server, start
from projects import ROOT, experiment, with_teacher

from study.executors import Ray
from study.launch import Plan, Runner
from study.progress import epochs_logged
from training import spec
from utils.errors import UserError

pytestmark = pytest.mark.slow

# Without batch norm, one and two processes compute the same. On the CPU, batch norm uses the images of its process
# only.
PLAIN = {
    "model_name": "mlp",
    "num_channels": None,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "batch_size": 16,
    "subset_percent": 0.3,
}


# What torchrun starts: processes that run their arguments in forked processes, which need not import PyTorch.
FORWARD = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import processes; processes.forward(sys.argv[1:])"
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}  # on GPUs, two processes would need two of them


def train(*argv):
    done = command(ROOT, *argv, **ON_CPU)
    assert done.status == 0, done.err
    return done.out


def train_together(output, *argv):
    """Train in two processes, in the environment that torchrun gives them. They print to the file `output`."""
    with contextlib.closing(socket.create_server(("localhost", 0))) as free:
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port} | ON_CPU
    both = [start(ROOT, *argv, output=output, RANK=rank, LOCAL_RANK=rank, **common) for rank in "01"]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], output.read_text()
    return output.read_text()


def test_torchrun_computes_what_one_process_does_and_resumes(tmp_path):
    share_server()
    alone = experiment(tmp_path / "alone", num_epochs=3, **PLAIN)
    together = experiment(tmp_path / "together", num_epochs=2, **PLAIN)
    train("train_scratch.py", "--save_path", alone)
    torchrun = "-m", "torch.distributed.run", "--nproc_per_node=2", "--no-python"
    output = train(*torchrun, sys.executable, "-c", FORWARD, "train_scratch.py", "--save_path", together)
    assert output.count("Epoch 2/2") == 1, "the first process alone writes"

    params = together / "params.json"
    params.write_text(params.read_text().replace('"num_epochs": 2', '"num_epochs": 3'))
    output = train_together(tmp_path / "output", "train_scratch.py", "--save_path", together)
    assert "Continuing after epoch 2/3" in output
    assert len((together / "metrics.jsonl").read_text().splitlines()) == 3

    one, two = (torch.load(folder / "last_model.tar") for folder in (alone, together))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, rtol=1e-4, atol=1e-6)


# mkd and cmim change further state in a step.
SCRIPTS = {"mkd": "train_kd.py", "cmim": "train_nasty.py"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_processes_compute_what_one_does(name, trained, tmp_path):
    own = with_teacher(trained / "baseline/teacher", matrix_learning_rate=0.01) if name == "mkd" else {"weight": 1.0}
    keys = PLAIN | {"subset_percent": 0.25, "num_epochs": 1} | own  # 224 images: a batch has 16, 8 for each process
    alone, together = (experiment(tmp_path / folder, method=name, **keys) for folder in ("alone", "together"))
    train(SCRIPTS[name], "--save_path", alone)
    train_together(tmp_path / "output", SCRIPTS[name], "--save_path", together)
    one, two = (torch.load(folder / "last_model.tar", weights_only=True) for folder in (alone, together))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=1e-4, atol=1e-6)
    part = {"mkd": "matrices", "cmim": "centroids"}[name]
    torch.testing.assert_close(one["extra"][part], two["extra"][part], rtol=1e-3, atol=1e-4)


with_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed (pip install ray)")


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


@with_ray
def test_a_killed_worker_is_replaced_and_goes_on(tmp_path, monkeypatch):
    small = {"num_cpus": 1, "include_dashboard": False}  # otherwise Ray starts many more processes
    monkeypatch.setattr("ray.init", functools.partial(importlib.import_module("ray").init, **small))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # default 15: beside other tests, the worker would hardly run
    teacher = experiment(tmp_path / "teacher", num_epochs=20)
    student = experiment(tmp_path / "student", **with_teacher(teacher))
    runner = Runner(Plan([spec.make(student)]))
    killer = threading.Thread(target=kill_whoever_trains_in, args=(teacher,))
    executor = Ray("local", 1, "data")
    killer.start()
    runner.run(executor)
    killer.join()
    assert not runner.unfinished()
    assert epochs_logged(teacher) == 20
    assert "Continuing after epoch" in (teacher / "training.log").read_text()


@with_ray
def test_an_unreachable_address_is_one_line():
    with pytest.raises(UserError, match="no Ray cluster at this address"):
        Ray("127.0.0.1:1", 1, "data")
