"""A run with two processes, as torchrun starts them, compared with one process; and a plan of runs as Ray tasks."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, experiment, with_teacher

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


def train(folder, processes=1, name="train_scratch.py"):
    command = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *command, name, "--save_path", str(folder)]
    on_cpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # on GPUs, two processes would need two of them
    return subprocess.run(command, cwd=ROOT, env=on_cpu, capture_output=True, text=True, check=True).stdout


def test_two_processes_compute_what_one_does_and_resume(tmp_path):
    alone = experiment(tmp_path / "alone", num_epochs=3, **PLAIN)
    together = experiment(tmp_path / "together", num_epochs=2, **PLAIN)
    train(alone)
    output = train(together, processes=2)
    assert output.count("Epoch 2/2") == 1, "the first process alone writes"

    params = together / "params.json"
    params.write_text(params.read_text().replace('"num_epochs": 2', '"num_epochs": 3'))
    assert "Continuing after epoch 2/3" in train(together, processes=2)
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
    content = []
    for processes in (1, 2):
        folder = experiment(tmp_path / str(processes), method=name, **keys)
        train(folder, processes, SCRIPTS[name])
        content.append(torch.load(folder / "last_model.tar", weights_only=True))
    one, two = content
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


@with_ray
def test_an_unreachable_address_is_one_line():
    with pytest.raises(UserError, match="no Ray cluster at this address"):
        Ray("127.0.0.1:1", 1, "data")
