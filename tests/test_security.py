"""What a file from a stranger cannot do; docs/architecture.md names these tests."""

import importlib
import json
import re
import shutil
import socket
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from projects import ROOT, experiment, files, script, set_root, with_teacher
from test_data import CLASSES, jpeg
from torchvision.datasets import utils as downloads

import method
import model
from study import ledger
from training import params, spec
from utils import data
from utils.errors import UserError


@pytest.fixture
def offline(monkeypatch):
    """Every connection to another machine fails the test."""

    def connect(*args, **options):
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tiny_imagenet"])
def test_nothing_is_downloaded_without_the_flag(dataset, offline, tmp_path):
    keys = {"dataset": dataset, "num_channels": None, "model_name": "resnet18"}
    folder = experiment(tmp_path / "x", **keys)
    done = script("train_scratch.py", "--save_path", folder, "--data_dir", tmp_path / "data")
    assert done.status == 2 and "add --download" in done.err and not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["../evil", "os", "__init__", "kd.__class__", "/tmp/evil", "method.attack.kd", "evil"])
@pytest.mark.parametrize("key", ["method", "release", "model_name", "dataset"])
def test_names_in_params_select_from_what_exists(key, name, tmp_path, monkeypatch):
    """No module outside of method/ and model/ is imported, whatever a params.json names."""
    imported, honest = [], importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: (imported.append(name), honest(name))[1])
    folder = experiment(tmp_path / "x", **with_teacher(tmp_path / "t", **{key: name}))
    with pytest.raises(UserError):
        params.load(folder)
    there_are = {f"method.{kind}.{name}" for kind in method.FOLDERS for name in method.files()[kind]}
    assert set(imported) <= there_are | {"method.scratch"} | {f"model.{file}" for file in model.files()}


def test_changed_keys_stay_in_a_folder_beside_the_experiment(tmp_path):
    """A value cannot leave the parent folder, although it becomes part of a folder's name."""
    folder = experiment(tmp_path / "in/x")
    for value in ("../../evil", "/tmp/evil", "a/b", "..", "a\nb", "\0"):
        run = spec.make(folder, {"resume": value})
        assert str(tmp_path / "in") == str(spec.from_root(run.folder).parent)
        assert "/" not in run.folder.removeprefix(f"{tmp_path}/in/") and run.folder.isprintable()


def test_a_run_writes_only_beside_itself_and_beside_its_teacher(tmp_path):
    teacher = experiment(tmp_path / "teachers/t")
    assert script("train_scratch.py", "--save_path", teacher).status == 0
    before = files(tmp_path)
    assert script("train_kd.py", "--save_path", experiment(tmp_path / "x", **with_teacher(teacher))).status == 0
    written = {path.relative_to(tmp_path).parts[:3] for path in files(tmp_path).keys() - before.keys()}
    assert {parts[0] for parts in written} == {"x", "teachers"}
    assert {parts for parts in written if parts[0] == "teachers"} == {("teachers", "t", "answers")}
    assert before.items() <= files(tmp_path).items()


@pytest.mark.parametrize("kind", ["tiny_imagenet", "cifar10"])
def test_an_archive_that_is_not_the_published_one_is_not_unpacked(kind, tmp_path, monkeypatch):
    """Served instead of the real one, with a member that would leave the folder."""
    archive, folder = tmp_path / "archive.zip", tmp_path / "in/data"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../evil", "evil")
        file.writestr("tiny-imagenet-200/wnids.txt", "evil")
    monkeypatch.setattr(downloads, "_get_redirect_url", lambda url, **options: url)
    monkeypatch.setattr(downloads, "_urlretrieve", lambda url, path: shutil.copy(archive, path))
    with pytest.raises(UserError, match=r"download to .* failed"):
        data.load(kind, folder, "cpu", download=True)
    left = {path.name for path in (tmp_path / "in").rglob("*") if path.is_file()}
    assert left <= {"tiny-imagenet-200.zip", "cifar-10-python.tar.gz"} and not list(tmp_path.rglob("evil"))


@pytest.fixture
def tiny(tmp_path):
    """A data folder with one training image in each class and one validation image."""
    folder = tmp_path / "data/tiny-imagenet-200"
    for name in CLASSES:
        jpeg(folder / "train" / name / "images" / f"{name}_0.JPEG", 1)
    jpeg(folder / "val/images/val_0.JPEG", 1)
    (folder / "val/val_annotations.txt").write_text(f"val_0.JPEG\t{CLASSES[0]}\n")
    data.load("tiny_imagenet", tmp_path / "data", "cpu")
    return folder


def header_of(width, height):
    """A JPEG file whose header promises an image of this size."""
    start = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffc0001108")
    return start + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes.fromhex("03011100021101031101ffda0000")


@pytest.mark.parametrize("size", [(31_623, 31_623), (65_000, 65_000), (10_000, 10_000), (64, 65)])
def test_an_image_of_any_other_size_is_not_decoded(size, tiny, monkeypatch):
    """Not even one that promises 10^9 pixels."""
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    (tiny / "val/images/val_0.JPEG").write_bytes(header_of(*size))
    with pytest.raises(UserError, match=r"val_0\.JPEG") as error:
        data.load("tiny_imagenet", tiny.parent, "cpu")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["../../secret.JPEG", "/etc/passwd", "..", "a/../val_0.JPEG", "\0", "", "\udcff"])
def test_annotations_name_files_of_their_folder_only(name, tiny):
    jpeg(tiny.parent / "secret.JPEG", 3)
    (tiny / "val/val_annotations.txt").write_bytes(f"{name}\t{CLASSES[0]}\n".encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"val_annotations|val/images"):
        data.load("tiny_imagenet", tiny.parent, "cpu")


def test_a_cache_of_images_runs_no_code(tiny):
    """A .npy file can hold pickled objects. Such a cache is made again."""
    (cache,) = tiny.glob("val.*.npy")
    before = data.load("tiny_imagenet", tiny.parent, "cpu").test.images
    ran = tiny / "ran"

    class Evil:
        def __reduce__(self):
            return ran.write_text, ("evil",)

    np.save(cache, np.array([Evil()], dtype=object), allow_pickle=True)
    assert torch.equal(data.load("tiny_imagenet", tiny.parent, "cpu").test.images, before) and not ran.exists()


def test_a_record_names_an_experiment_and_opens_no_other_file(tmp_path, monkeypatch):
    """Whatever its path says, a record is only compared with the experiments that are asked for."""
    set_root(monkeypatch, tmp_path)
    own = experiment(tmp_path / "experiments/mini/x")
    record = {"seed": 0, "train": {"loss": [1.0]}, "test": {"acc": [50.0]}}
    lines = [record | {"experiment": path} for path in ("experiments/mini/x", "../../etc", "/etc/passwd", "\x1b[2J")]
    (tmp_path / "results").mkdir()
    (tmp_path / "experiments/tables.json").write_text("{}")
    (tmp_path / "results/mini.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ledger.Recorded().summary(spec.make(own)).best == {0: 50.0}
    done = script("results.py", own)
    assert done.status == 0 and "50.00" in done.out and "etc" not in done.out and "\x1b" not in done.out


def test_the_page_names_tests_that_exist():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", page)
    assert len(named) > 10
    assert all(f"def {name}" in (ROOT / "tests" / file).read_text(encoding="utf-8") for file, name in named)
