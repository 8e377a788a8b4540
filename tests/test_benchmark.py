"""The benchmark runs; what it measures is not looked at."""

import json

import pytest
import torch

from benchmarks import epoch, machine
from benchmarks.pipelines import Part
from utils.data import DATASETS

SMALL = ["--batch_size", "8", "--steps", "2", "--warmup", "1", "--rounds", "1", "--images", "64", "--matrix", "64"]


def run(tmp_path, *argv):
    """What `benchmarks/epoch.py` writes to --output; there is no data set, so random images are used."""
    output = tmp_path / "out.json"
    epoch.main([*SMALL, "--data_dir", str(tmp_path), "--output", str(output), *argv])
    return json.loads(output.read_text())


def test_table(tmp_path, capsys):
    written = run(tmp_path, "net", "--kind", "normal", "nasty", "kd", "--profile", str(tmp_path / "profile.txt"))
    assert [line["kind"] for line in written["results"]] == ["normal", "nasty", "kd"]
    for line in written["results"]:
        assert line["ratio"] == pytest.approx(line["images_per_second"] / line["reference_images_per_second"])
        assert all(line[name] > 0 for name in epoch.COLUMNS if name not in ("network", "kind"))
    assert written["data"].startswith("64 random images")
    assert "aten::" in (tmp_path / "profile.txt").read_text()
    assert "images/s" in capsys.readouterr().out


def test_whole_epoch(tmp_path):
    assert run(tmp_path, "--steps", "0", "mlp")["results"][0]["epoch_seconds"] > 0


def test_together(tmp_path):
    lines = run(tmp_path, "mlp", "--together", "1", "2")["results"]
    assert [line["runs"] for line in lines] == [1, 2]
    assert all(line["total_images_per_second"] > 0 for line in lines)


def test_part_counts_after_the_warmup():
    batches = [(torch.zeros(size, 3), torch.zeros(size)) for size in (4, 4, 4, 2)]
    part = Part(batches, 3, 1, torch.device("cpu"))
    assert len(list(part)) == len(part) == 4
    assert part.images == 10 and part.end >= part.start


def test_step_flops():
    """ResNet-18: 1.11 GFLOP forward for a 32x32 image, 0.555 billion multiplications."""
    forward = machine.step_flops("resnet18", "normal", DATASETS["cifar10"]) / 3
    assert forward == pytest.approx(1.11e9, rel=0.01)
    assert machine.step_flops("resnet18", "nasty", DATASETS["cifar10"]) == 4 * forward


@pytest.mark.parametrize(
    "argv, message",
    [
        (["resnet19"], "unknown network"),
        (["net", "--steps", "1000"], "an epoch has only"),
        (["net", "--output", "no/such/folder/file"], "no/such/folder/file: must be a file in a folder"),
    ],
)
def test_bad_input(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        epoch.main([*SMALL, "--data_dir", str(tmp_path), *argv])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
