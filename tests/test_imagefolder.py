"""The data set imagefolder: how files become pixels, what is refused, and runs on it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from projects import experiment, metrics, script

from training import params
from utils import data, datasets, image_cache, imagefolder
from utils.errors import UserError

SIZE = 16


def save(folder, name, mode="RGB", size=(SIZE, SIZE), colour=(200, 100, 50), **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(folder / name, **options)
    return folder / name


@pytest.fixture
def own(tmp_path):
    """Two classes with 5 training and 2 test images each."""
    shades = iter(range(10, 250, 10))
    for part, count in (("train", 5), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                save(tmp_path / part / name, f"{number}.png", colour=(next(shades), 0, 100))
    return tmp_path


def load(folder, **options):
    return data.load("imagefolder", folder, "cpu", image_size=SIZE, augmentations="crop+flip", **options)


def refusal(folder):
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_classes_mean_and_deviation(own):
    found = load(own)
    assert found.train.labels.tolist() == [0] * 5 + [1] * 5 and found.test.labels.tolist() == [0, 0, 1, 1]
    assert found.train.images.shape == (10, SIZE, SIZE, 3) and found.train.images[3, 0, 0].tolist() == [40, 0, 100]
    shades = np.arange(10, 110, 10) / 255
    assert found.spec.mean == pytest.approx((shades.mean(), 0, 100 / 255), abs=5e-5)
    assert found.spec.std == pytest.approx((shades.std(), 1 / 255, 1 / 255), abs=5e-5)
    assert (found.spec.num_classes, found.spec.image_size, found.spec.augmentation) == (2, SIZE, ("crop", "flip"))
    assert f"10 training, 4 test images, 2 classes, 16x16, mean {shades.mean():.4f} 0.0000" in found.summary


def test_the_test_folder_may_be_called_val(own):
    (own / "test").rename(own / "val")
    assert len(load(own).test) == 4


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("L", "png", (124, 124, 124)),
        ("L", "jpg", (124, 124, 124)),
        ("P", "gif", (200, 100, 50)),
        ("RGBA", "png", (200, 100, 50)),
        ("LA", "png", (124, 124, 124)),
        ("CMYK", "jpg", (200, 100, 50)),
        ("1", "bmp", None),
    ],
)
def test_modes_of_images(mode, suffix, expected, own):
    save(own / "train/cat", f"0.{suffix}", mode)
    (own / "train/cat/0.png").unlink() if suffix != "png" else None
    pixel = load(own).train.images[0].float().mean((0, 1))
    assert expected is None or torch.allclose(pixel, torch.tensor(expected).float(), atol=4)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency(own):
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(own / "train/cat/0.png", transparency=bytes([0, 128]))
    assert load(own).train.images[0, 0, 0].tolist() == [10, 20, 30]


def test_grey_values_of_16_bits_are_scaled(own):
    grey = np.full((SIZE, SIZE), 128 * 257, np.uint16)
    Image.fromarray(grey).save(own / "train/cat/0.png")
    Image.fromarray(grey // 2).save(own / "train/cat/1.png")
    Image.fromarray(grey).save(own / "train/cat/2.tiff")
    (own / "train/cat/2.png").unlink()
    images = load(own).train.images
    assert images[0, 0, 0].tolist() == [128] * 3 and images[1, 0, 0].tolist() == [64] * 3
    assert images[2, 0, 0].tolist() == [128] * 3


def test_values_of_32_bits_are_refused(own):
    Image.fromarray(np.ones((SIZE, SIZE), np.float32)).save(own / "train/cat/0.tiff")
    assert refusal(own).endswith("train/cat/0.tiff: has 32-bit pixels; convert it to 8 or 16 bits")


def test_the_centre_of_a_larger_image_is_kept_upright(own):
    image = Image.new("RGB", (4 * SIZE, 2 * SIZE), (255, 0, 0))
    image.paste((0, 0, 255), (SIZE, 0, 3 * SIZE, 2 * SIZE))  # the centre is blue
    image.save(own / "train/cat/0.png")
    turned = Image.new("RGB", (SIZE, SIZE), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, SIZE, SIZE // 2))  # the upper half is white; orientation 3 turns it around
    exif = Image.Exif()
    exif[0x0112] = 3
    turned.save(own / "train/cat/1.png", exif=exif)
    first, second = load(own).train.images[:2]
    assert (first[:, 2:-2] == torch.tensor([0, 0, 255])).all()  # scaling blends the pixels at the border of the centre
    assert (second[: SIZE // 2] == 0).all() and (second[SIZE // 2 :] == 255).all()


# What is refused


def test_a_truncated_file_is_named(own):
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(noise).save(own / "train/dog/3.jpg")
    content = (own / "train/dog/3.jpg").read_bytes()
    (own / "train/dog/3.jpg").write_bytes(content[: len(content) // 2])
    assert f"{own}/train/dog/3.jpg is damaged: " in refusal(own)
    (own / "train/dog/3.jpg").write_bytes(b"no image")
    assert f"{own}/train/dog/3.jpg is damaged: " in refusal(own)
    assert not list(own.glob("*.tmp")) + list(own.glob("*.npy"))


def test_folders_that_are_refused(own):
    assert "train is missing; name the data folder with --data_dir: the data folder needs train/<class>/" in refusal(
        own / "elsewhere"
    )
    (own / "train/bird").mkdir()
    (own / "train/bird/notes.txt").write_text("no image")
    assert f"{own}/train/bird has no images (.jpg, " in refusal(own)
    save(own / "train/bird", "0.png")
    assert "train/ and test/ have different classes: only train/ has the class bird" in refusal(own)
    (own / "train/bird").rename(own / "test/bird")
    assert "only test/ has the class bird" in refusal(own)
    (own / "test/bird/0.png").unlink()
    (own / "test/bird/notes.txt").unlink()
    (own / "test/bird").rmdir()
    (own / "train/dog").rename(own / "elsewhere")
    assert "train has 1 class folders, expected at least 2" in refusal(own)


def test_hidden_files_and_other_files_are_ignored(own):
    for name in (".DS_Store", "Thumbs.db", "._0.png", "README.md"):
        (own / "train/cat" / name).write_bytes(b"no image")
    (own / "train/.cache").mkdir()
    assert len(load(own).train) == 10


# The cache


def test_images_are_decoded_once(own, monkeypatch):
    first = load(own)
    monkeypatch.setattr(imagefolder, "decode", lambda path, size: pytest.fail(f"{path} is decoded again"))
    again = load(own)
    assert torch.equal(again.train.images, first.train.images) and again.spec == first.spec
    assert again.digest == first.digest


def test_a_changed_file_and_another_size_are_decoded_anew(own):
    first = load(own)
    save(own / "train/cat", "0.png", colour=(1, 2, 3))
    changed = load(own)
    assert changed.train.images[0, 0, 0].tolist() == [1, 2, 3] and changed.digest != first.digest
    larger = data.load("imagefolder", own, "cpu", image_size=32, augmentations="flip")
    assert larger.train.images.shape == (10, 32, 32, 3)


def test_the_digest_does_not_depend_on_times_and_folders(own, tmp_path):
    first = load(own)
    os.utime(own / "train/cat/0.png", (1, 1))
    assert load(own).digest == first.digest
    (own / "train").rename(own / "before")
    (own / "before").rename(own / "train")
    assert load(own).digest == first.digest


def test_a_damaged_cache_is_written_again(own):
    images, digest = load(own).train.images.clone(), load(own).digest
    for file in own.glob("train.*"):
        file.write_bytes(file.read_bytes()[:100])
    again = load(own)
    assert torch.equal(again.train.images, images) and again.digest == digest


def test_a_folder_that_cannot_be_written(own, monkeypatch):
    def read_only(*args):
        raise PermissionError

    monkeypatch.setattr(image_cache, "write", read_only)
    expected = load(own)
    assert expected.train.images.shape == (10, SIZE, SIZE, 3) and not list(own.glob("*.npy"))
    monkeypatch.undo()
    assert torch.equal(load(own).train.images, expected.train.images)


def test_images_that_do_not_fit_in_memory(own, monkeypatch):
    """The array is written image by image, read through a memory map, and never copied as a whole."""
    sizes, ahead = [], []
    decode = imagefolder.decode
    monkeypatch.setattr(image_cache, "PIECE", 3)
    monkeypatch.setattr(imagefolder, "decode", lambda path, size: (ahead.append(path), decode(path, size))[1])
    honest = image_cache.write

    def watched(path, shape, images):
        def counted():
            for number, image in enumerate(images):
                sizes.append(len(ahead) - number)
                yield image

        honest(path, shape, counted())

    monkeypatch.setattr(image_cache, "write", watched)
    load(own)
    assert 0 < max(sizes) <= 3 + 10  # at most a piece ahead; the counter of test images starts after 10 training images
    read = imagefolder.read(own, SIZE)
    assert isinstance(read.train[0], np.memmap) and isinstance(read.test[0], np.memmap)
    dataset = load(own, validation=0.2, subset_percent=0.8)
    assert (len(dataset.train), len(dataset.validation)) == (6, 2)
    base = dataset.train.images
    assert (
        len(base) == 10 and base.untyped_storage().data_ptr() == dataset.validation.images.untyped_storage().data_ptr()
    )


@pytest.mark.parametrize("options", [{}, {"subset_percent": 0.5}, {"validation": 0.3}])
def test_batches_are_those_of_images_in_memory(options, own, monkeypatch):
    """The same rows, augmentation and labels as for the other data sets."""
    mapped = load(own, **options)
    monkeypatch.setattr(data, "mapped_split", data.copied_split)
    held = load(own, **options)
    for name in ("train", "validation", "test"):
        one, other = getattr(mapped, name), getattr(held, name)
        assert torch.equal(one.labels, other.labels) and (one.rows is None) != (other.rows is None)
    loaders = [dataset.train_loader(4 if len(dataset.train) % 4 != 1 else 3) for dataset in (mapped, held)]
    for (images, labels), (others, other_labels) in zip(*loaders, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


# Runs


@pytest.fixture
def coloured(tmp_path):
    """Images of a mean colour for each of three classes, with noise, as PNG files of 24x20."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 6)):
        for label, name in enumerate(("blue", "green", "red")):
            (tmp_path / f"data/{part}/{name}").mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 200, (20, 24, 3))
                pixels[..., 2 - label] += 55
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"data/{part}/{name}/{number}.png")
    return tmp_path


KEYS = {"model_name": "resnet8", "num_channels": None, "dataset": "imagefolder", "image_size": 16, "batch_size": 16}
KEYS |= {"subset_percent": None, "num_epochs": 3, "schedule": [], "learning_rate": 0.05, "augmentations": "flip"}


def test_a_run_and_its_student(coloured):
    teacher = experiment(coloured / "teacher", **KEYS)
    flags = ("--data_dir", coloured / "data")
    done = script("train_scratch.py", "--save_path", teacher, *flags)
    assert done.status == 0, done.err
    log = (teacher / "training.log").read_text()
    assert "Data: imagefolder: 48 training, 18 test images, 3 classes, 16x16, mean 0." in log
    assert metrics(teacher)[-1]["test"]["acc"] > 60
    last = torch.load(teacher / "last_model.tar", weights_only=True)
    assert last["state_dict"]["linear.weight"].shape[0] == 3 and len(last["origins"]["imagefolder"]) == 16
    source = {"teacher_model": "resnet8", "teacher_resume": str(teacher / "best_model.tar"), "alpha": 0.9}
    student = experiment(coloured / "student", **KEYS, **source, temperature=4)
    for _ in range(2):  # the second time, all is finished
        done = script("train_kd.py", "--save_path", student, *flags)
        assert done.status == 0, done.err
    scored = script("train_kd.py", "--save_path", student, "--evaluate", *flags)
    assert scored.status == 0 and f"acc: {max(line['test']['acc'] for line in metrics(student)):.2f}" in scored.out


def test_a_run_does_not_continue_on_other_images(coloured):
    folder, flags = experiment(coloured / "teacher", **KEYS), ("--data_dir", coloured / "data")
    assert script("train_scratch.py", "--save_path", folder, *flags).status == 0
    raw = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(raw | {"num_epochs": 4}))
    save(coloured / "data/train/red", "0.png")
    done = script("train_scratch.py", "--save_path", folder, *flags)
    assert done.status == 2 and "the images of the data set have changed since this run began" in done.err


def test_keys(tmp_path):
    raw = json.loads((experiment(tmp_path / "x", **KEYS) / "params.json").read_text())
    assert params.check(raw, "params.json").augmentations == "flip"
    for change, words in (
        ({"image_size": 4}, '"image_size": must be at least 8, not 4'),
        ({"augmentations": "flop"}, '"augmentations": must be one of crop, rotate, flip'),
        ({"model_name": "net"}, "net takes 32x32 images, not 16x16"),
        ({"dataset": "digits"}, '"image_size" is a key of the data set imagefolder only'),
    ):
        with pytest.raises(UserError, match=r"params\.json") as error:
            params.check(raw | change, Path("params.json"))
        assert words in str(error.value)
    del raw["image_size"]
    with pytest.raises(UserError, match='missing key "image_size"'):
        params.check(raw, "params.json")


def test_a_sample_of_tiny_imagenet(tmp_path):
    """The first three classes of the sample in ./data, in the layout of imagefolder, against its own reader."""
    source = Path(__file__).parents[1] / "data/tiny-imagenet-sample/tiny-imagenet-200/train"
    if not source.is_dir():
        pytest.skip("needs tiny-imagenet-sample in ./data")
    files = []
    for folder in sorted(source.iterdir())[:3]:
        for part in ("train", "val"):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / folder.name).symlink_to(folder)
        files += sorted(folder.rglob("*.JPEG"))
    found = data.load("imagefolder", tmp_path, "cpu", image_size=64, augmentations="rotate+flip")
    assert np.array_equal(found.train.images, [datasets._decode(path) for path in files])
    assert found.spec.num_classes == 3 and found.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
