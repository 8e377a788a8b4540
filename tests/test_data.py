"""Data sets, loaders and augmentation, compared with torchvision on PIL images."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from projects import all_digits
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as reference

from utils import augment, data, datasets, image_cache
from utils.errors import UserError

DATA = Path(__file__).parents[1] / "data"


def noise(count, height, width, seed=0):
    """uint8 images (count, height, width, 3) without zeros, so that a test can see the filled pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def pil(image):
    return Image.fromarray(image.numpy())


def same(image, pil_image):
    return np.array_equal(image.numpy(), np.asarray(pil_image))


# Augmentation: the same random numbers give the same pixels


def test_crop_is_torchvisions():
    images = noise(81, 32, 32)
    top, left = torch.arange(81) // 9, torch.arange(81) % 9
    for image, cropped, i, j in zip(images, augment.crop(images, top, left), top, left, strict=True):
        assert same(cropped, reference.crop(reference.pad(pil(image), 4), int(i), int(j), 32, 32))


def test_flip_is_torchvisions():
    images, mirrored = noise(6, 5, 7), torch.tensor([True, False, True, True, False, False])
    for image, flipped, mirror in zip(images, augment.flip(images, mirrored), mirrored, strict=True):
        assert same(flipped, reference.hflip(pil(image)) if mirror else pil(image))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 32), (9, 14)])
def test_rotation_is_pillows(height, width):
    images = noise(600, height, width)
    degrees = torch.empty(600).uniform_(-20, 20, generator=torch.Generator().manual_seed(1))
    degrees[:5] = torch.tensor([0.0, 20.0, -20.0, 1e-6, -0.01])
    for image, rotated, angle in zip(images, augment.rotate(images, degrees), degrees.tolist(), strict=True):
        assert same(rotated, reference.rotate(pil(image), angle, fill=0))


@pytest.mark.parametrize("name", list(data.DATASETS))
def test_normalisation_is_torchvisions_to_the_last_bit(name):
    spec = data.DATASETS[name]
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8, 1).expand(-1, -1, -1, 3).contiguous()
    ours = augment.normalise(images, torch.tensor(spec.mean), torch.tensor(spec.std))
    for image, normalised in zip(images, ours, strict=True):
        assert torch.equal(normalised, reference.normalize(reference.to_tensor(pil(image)), spec.mean, spec.std))


def test_numbers_have_torchvisions_distribution():
    numbers = augment.sample_augmentation(("crop", "rotate", "flip"), 90_000, torch.Generator().manual_seed(0))
    for offset in (numbers["top"], numbers["left"], numbers["top"] * 9 + numbers["left"]):
        counts = torch.bincount(offset)
        expected = 90_000 / len(counts)
        assert len(counts) in (9, 81)
        assert ((counts - expected).abs() < 5 * expected**0.5).all()
    assert abs(numbers["mirrored"].float().mean() - 0.5) < 0.01
    counts = torch.histc(numbers["degrees"], 40, -20, 20)
    assert counts.sum() == 90_000
    assert ((counts - 2250).abs() < 5 * 2250**0.5).all()


def test_digits_are_never_mirrored():
    assert data.DATASETS["digits"].augmentation == ("crop",)


# Loaders


def numbered(count, size=8):
    """A split in which the label of an image is its index."""
    return data.Split(noise(count, size, size), torch.arange(count))


def make(count=50, batch_size=8, name="cifar10", seed=0, **options):
    spec = data.DATASETS[name]
    return data.Loader(numbered(count), spec, batch_size, spec.augmentation, shuffle=True, seed=seed, **options)


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet", "digits"])
def test_an_epoch_holds_every_image_once_and_keeps_the_last_batch(name):
    loader = make(name=name)
    batches = list(loader)
    assert len(loader) == len(batches) == 7
    assert [len(labels) for _, labels in batches] == [8] * 6 + [2]
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(50))
    for images, labels in batches:
        assert images.shape == (len(labels), 3, 8, 8)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet"])
def test_an_epoch_is_a_function_of_seed_and_epoch(name):
    trained, resumed = make(name=name), make(name=name)
    for epoch in range(4):
        torch.manual_seed(epoch)
        trained.set_epoch(epoch)
        state = torch.get_rng_state()
        batches = list(trained)
        assert torch.equal(state, torch.get_rng_state())
    resumed.set_epoch(3)
    torch.manual_seed(7)
    assert equal(batches, list(resumed))
    assert equal(batches, list(resumed))


def test_epochs_and_seeds_differ():
    orders = set()
    for seed in range(4):
        loader = make(seed=seed)
        for epoch in range(4):
            loader.set_epoch(epoch)
            orders.add(tuple(torch.cat([labels for _, labels in loader]).tolist()))
    assert len(orders) == 16


def test_an_image_is_augmented_anew_in_each_epoch():
    loader = make(count=40, batch_size=40)
    images = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        (batch,) = loader
        images.append(batch[0][batch[1].argsort()])
    assert (images[0] != images[1]).flatten(1).any(1).float().mean() > 0.9


def test_processes_see_together_what_one_sees():
    whole = list(make())
    shares = [list(make(rank=rank, world_size=3)) for rank in range(3)]
    for i, (images, labels) in enumerate(whole):
        for rank, share in enumerate(shares):
            assert torch.equal(share[i][0], images[rank::3])
            assert torch.equal(share[i][1], labels[rank::3])


@pytest.mark.parametrize(("batch_size", "world_size", "share"), [(49, 1, "1,"), (47, 2, "3 for 2 processes,")])
def test_a_last_batch_too_small_for_batch_norm_is_refused(batch_size, world_size, share):
    split, spec = numbered(50), data.DATASETS["cifar10"]
    dataset = data.Dataset("cifar10", spec, split, split, split, "")
    with pytest.raises(UserError, match=f"batch_size {batch_size}: with 50 .* batch has size {share}.* at least 2"):
        dataset.train_loader(batch_size, world_size=world_size)
    assert len(list(dataset.train_loader(batch_size - 1, world_size=world_size))) == 2


def test_without_augmentation_images_are_only_normalised():
    split, spec = numbered(20), data.DATASETS["cifar10"]
    dataset = data.Dataset("cifar10", spec, split, split, split, "")
    expected = augment.normalise(split.images, torch.tensor(spec.mean), torch.tensor(spec.std))
    for images, labels in dataset.train_loader(8, augmentation=False):
        assert torch.equal(images, expected[labels])
    ((images, labels),) = dataset.test_loader()
    assert torch.equal(images, expected)
    assert torch.equal(labels, split.labels)


@pytest.mark.parametrize("name", list(data.DATASETS))
def test_batches_are_those_of_torchvisions_transforms(name):
    spec = data.DATASETS[name]
    split = numbered(40, spec.image_size)
    loader = data.Loader(split, spec, 16, spec.augmentation, shuffle=True)
    order, numbers = loader.sample_epoch()
    for i, image in enumerate(torch.cat([images for images, _ in loader])):
        expected = pil(split.images[order[i]])
        if "top" in numbers:
            top, left = int(numbers["top"][i]), int(numbers["left"][i])
            expected = reference.crop(reference.pad(expected, 4), top, left, 32, 32)
        if "degrees" in numbers:
            expected = reference.rotate(expected, numbers["degrees"][i].item(), fill=0)
        if "mirrored" in numbers and numbers["mirrored"][i]:
            expected = reference.hflip(expected)
        assert torch.equal(image, reference.normalize(reference.to_tensor(expected), spec.mean, spec.std))


# Data sets


def refusal(name, folder, **options):
    """The message of the error that loading raises: one line."""
    with pytest.raises(UserError) as error:
        data.load(name, folder, "cpu", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_name_is_refused_with_a_suggestion(tmp_path):
    assert 'did you mean "cifar10"?' in refusal("cifar_10", tmp_path)


def test_digits(monkeypatch):
    monkeypatch.setattr(datasets, "digits", all_digits)
    dataset = data.load("digits", "nowhere", "cpu")
    assert dataset.summary == "digits: 898 training, 899 test images, 10 classes, 32x32"
    assert dataset.train.images.shape == (898, 32, 32, 3)
    assert torch.bincount(torch.cat((dataset.train.labels, dataset.test.labels))).min() == 174
    pixels = dataset.train.images.double() / 255
    assert round(pixels.mean().item(), 4) == dataset.spec.mean[0]
    assert round(pixels.std(correction=0).item(), 4) == dataset.spec.std[0]
    first = np.load(datasets.__file__.replace("datasets.py", "digits.npz"))["images"]
    first = first[np.random.RandomState(0).permutation(1797)[0]]
    assert dataset.train.images[0, 0, 0, 0] == round(first[0, 0] * 255 / 16)


def test_a_subset_is_the_first_part_of_one_permutation():
    full = data.load("digits", "nowhere", "cpu")
    part = data.load("digits", "nowhere", "cpu", subset_percent=0.3)
    np.random.seed(230)
    kept = np.random.permutation(224)[:67]
    assert torch.equal(part.train.images, full.train.images[kept])
    assert torch.equal(part.train.labels, full.train.labels[kept])
    assert torch.equal(part.test.images, full.test.images)
    assert "digits: 67 training, 50 test images" in part.summary


@pytest.mark.parametrize("share", [0.0001, 0.0, 1.5, -0.1])
def test_a_share_without_images_is_refused(share):
    assert "subset_percent" in refusal("digits", "nowhere", subset_percent=share)


def fake_cifar10(folder):
    """Write the files of the public archive, with one image in each. Their md5 sums are wrong on purpose."""
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        content = {"data": np.zeros((1, 3072), np.uint8), "labels": [0]}
        (folder / name).write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("below", ["cifar-10-batches-py", "data-cifar10/cifar-10-batches-py"])
def test_cifar_files_that_are_not_the_published_ones_are_refused(tmp_path, below):
    fake_cifar10(tmp_path / below)
    message = refusal("cifar10", tmp_path)
    assert str(tmp_path / below / "data_batch_1") in message
    assert "md5" in message
    assert "--download" in message


def test_missing_cifar_files_are_named(tmp_path):
    for name, file in (("cifar10", "cifar-10-batches-py/data_batch_1"), ("cifar100", "cifar-100-python/train")):
        message = refusal(name, tmp_path)
        assert f"{tmp_path / f'data-{name}' / file} is missing; add --download" in message


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", offline)
    for name in ("cifar10", "tiny_imagenet"):
        assert "failed: no network" in refusal(name, tmp_path, download=True)


CLASSES = [f"n{i:08d}" for i in range(200)]


def jpeg(path, shade, mode="RGB", size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).convert(mode).save(path, "JPEG", quality=95)


@pytest.fixture
def tiny(tmp_path):
    """The public layout, with one training image in each class and validation images of classes 3, 199 and 0."""
    folder = tmp_path / "tiny-imagenet-200"
    for shade, name in enumerate(CLASSES):
        jpeg(folder / "train" / name / "images" / f"{name}_0.JPEG", shade, "L" if shade == 5 else "RGB")
    for i, label in enumerate((3, 199, 0)):
        jpeg(folder / "val" / "images" / f"val_{i}.JPEG", label)
    lines = [f"val_{i}.JPEG\t{CLASSES[label]}\t0\t0\t62\t62\n" for i, label in enumerate((3, 199, 0))]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet_as_the_archive_unpacks(tiny):
    dataset = data.load("tiny_imagenet", tiny.parent, "cpu")
    assert dataset.test.labels.tolist() == [3, 199, 0]
    assert dataset.summary.startswith("tiny_imagenet: 200 training, 3 test images, 200 classes, 64x64 (a sample")
    for (image, label), ours, our_label in zip(
        ImageFolder(tiny / "train"), dataset.train.images, dataset.train.labels, strict=True
    ):
        assert same(ours, image)
        assert label == our_label
    grey = dataset.train.images[5]
    assert torch.equal(grey[..., 0], grey[..., 1])


@pytest.mark.parametrize("below", ["", "images"])
def test_tiny_imagenet_rearranged_into_class_folders(tiny, below):
    public = data.load("tiny_imagenet", tiny.parent, "cpu").test
    for name in CLASSES:
        (tiny / "val" / name / below).mkdir(parents=True)
    for i, label in enumerate((3, 199, 0)):
        path = tiny / "val" / "images" / f"val_{i}.JPEG"
        path.rename(tiny / "val" / CLASSES[label] / below / path.name)
    arranged = data.load("tiny_imagenet", tiny.parent, "cpu").test
    assert arranged.labels.tolist() == [0, 3, 199]
    assert torch.equal(arranged.images, public.images[[2, 0, 1]])


def test_decoded_images_are_kept_until_a_file_changes(tiny, monkeypatch):
    first = data.load("tiny_imagenet", tiny.parent, "cpu")
    decode = datasets._decode
    monkeypatch.setattr(datasets, "_decode", None)
    assert torch.equal(data.load("tiny_imagenet", tiny.parent, "cpu").train.images, first.train.images)
    monkeypatch.setattr(datasets, "_decode", decode)
    jpeg(tiny / "train" / CLASSES[0] / "images" / f"{CLASSES[0]}_0.JPEG", 255)
    assert (data.load("tiny_imagenet", tiny.parent, "cpu").train.images[0, ..., 0] > 250).all()
    for cache in tiny.glob("*.npy"):
        cache.write_bytes(b"")
    assert torch.equal(data.load("tiny_imagenet", tiny.parent, "cpu").test.images, first.test.images)
    assert not list(tiny.glob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_read_all_the_same(tiny, monkeypatch):
    def read_only(*args, **options):
        raise PermissionError

    monkeypatch.setattr(image_cache, "write", read_only)
    assert len(data.load("tiny_imagenet", tiny.parent, "cpu").train) == 200
    assert not [*tiny.glob("*.npy"), *tiny.glob("*.tmp")]


def test_missing_and_damaged_tiny_imagenet_files_are_named(tiny):
    assert "tiny-imagenet-200/train is missing; add --download" in refusal("tiny_imagenet", tiny)
    image = tiny / "val" / "images" / "val_1.JPEG"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    assert f"{image} is damaged" in refusal("tiny_imagenet", tiny.parent)
    jpeg(image, 0, size=(64, 32))
    assert f"{image} is 64x32, expected 64x64" in refusal("tiny_imagenet", tiny.parent)
    image.unlink()
    assert f"{image} is missing" in refusal("tiny_imagenet", tiny.parent)
    table = tiny / "val" / "val_annotations.txt"
    table.write_text("val_0.JPEG\tn99999999\t0\t0\t62\t62\n")
    assert "val_0.JPEG: its class is missing, or is not a folder of train/" in refusal("tiny_imagenet", tiny.parent)
    table.unlink()
    assert "val_annotations.txt is missing" in refusal("tiny_imagenet", tiny.parent)
    (tiny / "train" / "n00000200").mkdir()
    assert "201 class folders, expected 200" in refusal("tiny_imagenet", tiny.parent)


@pytest.mark.parametrize(("name", "first"), [("cifar10", [6, 9, 9, 4, 1]), ("cifar100", [19, 29, 0, 11, 1])])
def test_published_cifar_files(name, first):
    if not (DATA / f"data-{name}").is_dir():
        pytest.skip(f"needs {name} in ./data")
    dataset = data.load(name, DATA, "cpu")
    classes = dataset.spec.num_classes
    assert dataset.summary == f"{name}: 50000 training, 10000 test images, {classes} classes, 32x32"
    assert torch.equal(torch.bincount(dataset.train.labels), torch.full((classes,), 50_000 // classes))
    assert dataset.train.labels[:5].tolist() == first
    assert torch.equal(data.load(name, DATA / f"data-{name}", "cpu").test.images, dataset.test.images)
