"""The teachers that a figure compares, and their outputs."""

from pathlib import Path

import torch

from training import params
from training.experiment import suggest_command
from training.zoo import Zoo
from utils import data
from utils.errors import UserError
from utils.paths import display_path

NAMES = ("normal teacher", "nasty teacher")
CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def load(normal, nasty, data_dir="data", download=False):
    """(data set, two networks) of run folders with a best_model.tar, on the CPU, so that figures are reproducible.

    Raises UserError if a checkpoint is missing or the data sets differ.
    """
    name, pair = networks([normal, nasty], torch.device("cpu"))
    return data.load(name, data_dir, "cpu", download=download), pair


def networks(folders, device):
    """(name of the data set, float32 networks of the run folders). The data set is not read. Errors: see `load`."""
    settings = [params.load(folder) for folder in folders]
    first = settings[0].dataset
    if first == data.OWN:
        raise UserError(f"{display_path(folders[0])}: this figure cannot be drawn for the data set {first}")
    for folder, setting in zip(folders, settings, strict=True):
        if setting.dataset != first:
            pair = f"{display_path(folders[0])} is trained on {first}, {display_path(folder)} on {setting.dataset}"
            raise UserError(f"{pair}: a figure compares teachers of one data set")
    zoo, files = Zoo(data.DATASETS[first], device), [Path(folder).absolute() / "best_model.tar" for folder in folders]
    with suggest_command():
        return first, [zoo.frozen(setting.model_name, file) for setting, file in zip(settings, files, strict=True)]


def class_names(dataset):
    """The names of a data set's classes, or their numbers if no names are known."""
    return CLASSES.get(dataset, tuple(map(str, range(data.DATASETS[dataset].num_classes))))


def outputs(network, dataset, index):
    """(features (N, F), logits (N, C)) of the test images `index`, int64 (N,)."""
    loader = dataset.test_loader()
    parts = [network(loader.assemble(part, {})[0], with_features=True) for part in index.split(250)]
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
