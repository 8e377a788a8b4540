"""The two teachers that a figure compares, and what they answer."""

from pathlib import Path

import torch

from model.zoo import Zoo
from utils import data, params
from utils.checkpoint import shown
from utils.errors import UserError

NAMES = ("normal teacher", "nasty teacher")
CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def load(normal, nasty, data_dir="data", download=False):
    """(data set, two networks) of run folders with a best_model.tar. UserError: there is none, or other data sets.

    On the CPU, in float32: a figure needs few images, and is then the same wherever it is made.
    """
    folders = [Path(normal).absolute(), Path(nasty).absolute()]
    settings = [params.load(folder) for folder in folders]
    first, second = [setting.dataset for setting in settings]
    if first != second:
        raise UserError(f"{shown(normal)} is trained on {first}, {shown(nasty)} on {second}: nothing to compare")
    zoo = Zoo(data.DATASETS[first], torch.device("cpu"))
    networks = [
        zoo.frozen(setting.model_name, folder / "best_model.tar")
        for setting, folder in zip(settings, folders, strict=True)
    ]
    return data.load(first, data_dir, "cpu", download=download), networks


def class_names(dataset):
    """A name, or else the number, of each class."""
    return CLASSES.get(dataset.name, tuple(map(str, range(dataset.spec.num_classes))))


def outputs(network, dataset, index):
    """(features (N, F), logits (N, C)) of the test images `index`, int64 (N,)."""
    loader = dataset.test_loader()
    parts = [network(loader.assemble(part, {})[0], with_features=True) for part in index.split(250)]
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
