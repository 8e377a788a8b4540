"""The speed benchmark runs. Its measurements are not checked."""

import json
from collections import Counter

import pytest
import torch

from benchmarks import epoch, machine, pipelines
from benchmarks.pipelines import DATA_FREE, Part
from method.datafree import Generating
from utils.data import DATASETS

pytestmark = pytest.mark.slow
SMALL = ["--batch_size", "8", "--steps", "2", "--warmup", "1", "--rounds", "1", "--images", "64", "--matrix", "64"]


def run(tmp_path, *argv):
    """Run `benchmarks/epoch.py` on random images, and return what it writes to --output."""
    output = tmp_path / "out.json"
    epoch.main([*SMALL, "--data_dir", str(tmp_path), "--output", str(output), *argv])
    return json.loads(output.read_text())


def test_table(tmp_path, capsys):
    profile = str(tmp_path / "profile.txt")
    written = run(tmp_path, "net", "--kind", "normal", "nasty", "kd", "--cuda_graph", "--profile", profile)
    assert [line["kind"] for line in written["results"]] == ["normal", "nasty", "kd"]
    for line in written["results"]:
        assert line["ratio"] == pytest.approx(line["images_per_second"] / line["reference_images_per_second"])
        assert all(line[name] > 0 for name in epoch.COLUMNS if name not in ("network", "kind", "recorded"))
        assert line["recorded"] == torch.cuda.is_available()
    assert written["data"].startswith("64 random images")
    assert "aten::" in (tmp_path / "profile.txt").read_text()
    assert "images/s" in capsys.readouterr().out


def test_attacks_without_data(tmp_path, monkeypatch):
    """The time of an iteration includes the generator's step and all student steps: one for dafl, five for dfad."""
    steps, lengths, honest, invert = [], [], Generating.train_generator, pipelines.invert
    monkeypatch.setattr(Generating, "train_generator", lambda *args: steps.append(args[0]) or honest(*args))
    monkeypatch.setattr(pipelines, "invert", lambda *args, **own: lengths.append(own["steps"]) or invert(*args, **own))
    lines = run(tmp_path, "net", "--kind", *DATA_FREE, "--profile", str(tmp_path / "profile.txt"))["results"]
    assert Counter(type(attack).__name__ for attack in steps) == {"DAFL": 1 + 3 + 1, "DFAD": 1 + 3 + 1}
    assert lengths == [1, 1, 2, 1]  # first step; warm-up and timed steps of the round; profile
    for line, images in zip(lines, (8, 5 * 8, 8 / 2000), strict=True):
        assert line["images_per_second"] == pytest.approx(images * line["iterations_per_second"])
        assert line["ratio"] is line["reference_images_per_second"] is line["loading_percent"] is None
        assert line["memory_mib"] > 0 and line["warmup_seconds"] > 0


def test_batch_sizes_are_the_published_ones():
    sizes = {kind: pipelines.settings("net", kind, None, "fp32").batch_size for kind in pipelines.KINDS}
    assert sizes == {"normal": 128, "nasty": 128, "kd": 128, "dafl": 1024, "dfad": 256, "deepinversion": 256}


def test_lengths_of_a_round():
    def lengths(device, *argv):
        return epoch.steps_of_a_round(epoch.flags().parse_args(list(argv)), torch.device(device))

    assert lengths("cpu") == (30, 30) and lengths("cuda") == (380, 60)
    assert lengths("cuda", "--steps", "7") == (7, 7) and lengths("cuda", "--reference_steps", "9") == (380, 9)
    assert lengths("cpu", "--steps", "0", "--reference_steps", "5") == (0, 5)


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


def test_a_step_of_several_batches():
    class Pairs(list):
        per_step = 2

    part = Part(Pairs([torch.zeros(4, 3)] for _ in range(8)), 2, 1, torch.device("cpu"))
    assert len(list(part)) == len(part) == 6 and part.images == 16


def test_what_a_part_times():
    """A Part measures the time of an attack between batches too, up to the training on the last batch."""
    log = []

    def batches():
        for number in range(9):
            log.append(f"generator {number}")
            yield [torch.zeros(4, 3)]

    class Clock(Part):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            log.extend([name] * (name in ("start", "end")))

    for _ in Clock(batches(), 1, 1, torch.device("cpu")):
        log.append("student")
    assert log == ["start", "generator 0", "student", "start", "generator 1", "student", "end"]


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
        (["mlp", "--kind", "deepinversion"], "no batch norm"),
        (["net", "--kind", "dafl", "--batch_size", "1"], '"batch_size": must be at least 2'),
        (["net", "--kind", "dfad", "--steps", "50"], "an epoch has only 50 steps"),
        (["net", "--kind", "deepinversion", "--together", "2"], "train pixels"),
        (["net", "--output", "no/such/folder/file"], "no/such/folder/file: must be a file in an existing folder"),
    ],
)
def test_bad_input(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        epoch.main([*SMALL, "--data_dir", str(tmp_path), *argv])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
