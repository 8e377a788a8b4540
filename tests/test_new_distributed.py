"""mkd and cmim change further state in a step. Two processes give the same result as one."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, experiment, with_teacher
from test_distributed import PLAIN

SCRIPTS = {"mkd": "train_kd.py", "cmim": "train_nasty.py"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_processes_compute_what_one_does(name, trained, tmp_path):
    own = with_teacher(trained / "baseline/teacher", matrix_learning_rate=0.01) if name == "mkd" else {"weight": 1.0}
    keys = PLAIN | {"subset_percent": 0.25, "num_epochs": 1} | own  # 224 images: a batch has 16, 8 for each process
    content = []
    for processes in (1, 2):
        folder = experiment(tmp_path / str(processes), method=name, **keys)
        command = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
        command = [sys.executable, *command, SCRIPTS[name], "--save_path", str(folder)]
        subprocess.run(
            command, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, check=True
        )
        content.append(torch.load(folder / "last_model.tar", weights_only=True))
    one, two = content
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=1e-4, atol=1e-6)
    part = {"mkd": "matrices", "cmim": "centroids"}[name]
    torch.testing.assert_close(one["extra"][part], two["extra"][part], rtol=1e-3, atol=1e-4)
