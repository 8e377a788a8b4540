"""Exports trained networks: writes weights to model/weights/, and a card for each network to model/pretrained.json."""

import json
from pathlib import Path

import torch

import model
from model.pretrained import INDEX, WEIGHTS, cards, sha256
from study.progress import epochs_done
from training.zoo import Zoo
from utils import checkpoint, data
from utils.errors import UserError
from utils.paths import display_path, from_root, make_folder, write_json

LICENCE = "MIT, as this project; the terms of the data set apply as well"


def export(target, name=None, data_dir="data", download=False):
    """Write the network of a finished run to model/weights/, and its card to INDEX. Returns the card as JSON.

    target: a run folder, whose best_model.tar is exported, or a checkpoint in a run folder. name: the argument of
    `model.load_model`; default: the path of the run folder below experiments/. Weights are stored as float16 if this
    does not change the number of correctly classified test images, otherwise as float32. Raises UserError if the file
    is not a checkpoint of this project, if the run has not finished, or if another network has this file name.
    """
    file = from_root(Path(target) / "best_model.tar" if from_root(target).is_dir() else target)
    content, folder = checkpoint.load(file), file.parent
    if not {"params", "state_dict", "environment"} <= content.keys():
        raise UserError(f"{display_path(file)}: not a checkpoint of a run of this project")
    params = content["params"]
    if (done := epochs_done(folder)) < params["num_epochs"]:
        raise UserError(f"{display_path(folder)}: {done}/{params['num_epochs']} epochs; finish the run first")
    name = name or display_path(folder).removeprefix("experiments/")
    path = from_root(f"{WEIGHTS}/{name.replace('/', '-')}.pt")
    if taken := [other for other, card in cards().items() if other != name and from_root(card["file"]) == path]:
        raise UserError(f"--name {name}: {display_path(path)} is the file of {taken[0]}; choose another name")
    dataset = data.load(params["dataset"], data_dir, "cpu", download=download, **data.options_in(params))
    network = Zoo(dataset.spec, torch.device("cpu")).frozen(params["model_name"], file)
    weights = {key: weight.clone() for key, weight in network.state_dict().items()}
    half = {key: weight.half() if weight.is_floating_point() else weight for key, weight in weights.items()}
    correct = count_correct(network, dataset)
    network.load_state_dict(half)
    if count_correct(network, dataset) == correct:
        weights = half
    options = model.options_in(params, params["model_name"])
    card = {
        "about": f"{params['model_name']}, trained by the method {params['method']} on {dataset.name}",
        "model_name": params["model_name"],
        "options": options,
        "num_classes": dataset.spec.num_classes,
        "image_size": dataset.spec.image_size,
        "dataset": dataset.name,
        "mean": dataset.spec.mean,
        "std": dataset.spec.std,
        "accuracy": round(100 * correct / len(dataset.test), 4),
        "correct": f"{correct} of {len(dataset.test)} test images",
        "precision": "float16" if weights is half else "float32",
        "checkpoint": display_path(file),
        "epoch": content["epoch"],
        "seed": params["seed"],
        "environment": content["environment"],
        "licence": LICENCE,
        "weights": checkpoint.weights_digest(weights),
    }
    make_folder(path.parent)
    stored_params = {"model_name": params["model_name"], "dataset": dataset.name} | options
    checkpoint.save(path, {"state_dict": weights, "params": stored_params, "card": json.dumps(card)})
    card |= {"file": display_path(path), "url": None, "sha256": sha256(path)}
    write_json(from_root(INDEX), dict(sorted((cards() | {name: card}).items())))
    return json.dumps({name: card}, indent=4)


@torch.no_grad()
def count_correct(network, dataset):
    """The number of test images that a network classifies correctly."""
    network.eval()
    return sum(int((network(images).argmax(1) == labels).sum()) for images, labels in dataset.test_loader())
