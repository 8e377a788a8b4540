"""params.json: its keys, checks and defaults.

The keys of every run are declared here, the keys of a method in its file (`Method.Params`), and the keys of a network
in its constructor.
"""

import dataclasses
import functools
import itertools
import json
import types
from pathlib import Path

import torch

import method
import model
from utils import data, imagefolder
from utils.errors import UserError, suggest
from utils.keys import key, shorten, wrong
from utils.paths import display_path, read_json

DEFAULT_METHODS = {"scratch": "scratch", "defend": "nasty", "attack": "kd"}
OLD_NAMES = {"compile": "cuda_graph"}


@dataclasses.dataclass
class Common:
    """The keys of every run."""

    model_name: str = key("network to train")
    dataset: str = key("data set; imagefolder: your own images", choices=data.NAMES)
    method: str = key("name of a file in method/, method/defend/ or method/attack/")
    num_epochs: int = key("passes over the training set; a larger value continues a finished run", low=1)
    batch_size: int = key("images per step; the last batch of an epoch may be smaller", low=1)
    learning_rate: float = key("learning rate of the first epoch", above=0)
    schedule: list[int] = key("epochs, counted from 0; at the start of each, the learning rate is multiplied by gamma")
    gamma: float = key("factor of the learning rate at the epochs of schedule", above=0)
    optimizer: str = key(
        "auto: adam for net and mlp, sgd for other networks", default="auto", choices=("auto", "sgd", "adam")
    )
    momentum: float = key("momentum of the optimizer sgd", default=0.9, low=0, below=1)
    weight_decay: float | None = key("weight decay; null: 5e-4 with sgd, 0 with adam", default=None, low=0)
    clip_grad_norm: float = key("largest norm of the gradient; larger gradients are scaled; 0: no limit", 0.0, low=0)
    augmentation: bool = key("random crops, flips and rotations, depending on the data set", default=True)
    subset_percent: float = key("share of the training images to use: 0.1 is 10 %", default=1.0, above=0, high=1)
    validation: float = key(
        "share of the used training images to hold out; if above 0, the best epoch is chosen by the accuracy on these "
        "images, and test images are evaluated only if test_at_end is true",
        default=0.0,
        low=0,
        below=1,
    )
    test_at_end: bool = key("with validation: after the last epoch, evaluate the best epoch on the test images", False)
    resume: str | None = key("start from the weights in this checkpoint", default=None)
    seed: int = key("seed of initial weights, order of batches and augmentation", default=0, low=0)
    precision: str = key(
        "fp32, bf16 (autocast, losses in float32) or auto: bf16 if the hardware supports it",
        default="fp32",
        choices=("fp32", "bf16", "auto"),
    )
    cuda_graph: bool = key("record training steps as a CUDA graph and replay it; ignored without a GPU", default=False)
    num_workers: int = key("accepted and ignored: images are held on the device", default=0, low=0)
    cuda: bool = key("accepted and ignored: a GPU is used if there is one", default=True)


def load(folder, changes=()):
    """The checked parameters of `folder`/params.json: a namespace with one attribute per key.

    changes: {key: value} that replace or add keys. Raises UserError with a list of all problems.
    """
    path = Path(folder) / "params.json"
    return check(read_json(path) | dict(changes), path)


def check(raw, path):
    """The parameters in the dictionary `raw`, with defaults filled in, as a namespace.

    path: the file that error messages name. Raises UserError with a list of all problems.
    """
    try:
        raw = with_method(raw)
        fields = schema(raw)
    except UserError as error:
        raise UserError(f"{display_path(path)}: {error}") from None
    problems = [unknown_key(name, fields) for name in raw if name not in fields]
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = raw[name]
            problems += wrong(name, raw[name], field)
        elif field.default is not dataclasses.MISSING:
            values[name] = list(field.default) if isinstance(field.default, tuple) else field.default
        else:
            problems.append(f'missing key "{name}": {field.metadata["about"]}')
    if not problems:
        problems = inconsistent(values)
    if problems:
        raise UserError(f"{display_path(path)}: " + "\n  ".join(["", *problems] if len(problems) > 1 else problems))
    return types.SimpleNamespace(**resolve(values))


def unknown_key(name, fields):
    """The error message for a key that a run does not have. fields: {name: dataclass field} of all its keys."""
    if name in OLD_NAMES:
        return f'"{name}" is the old name of "{OLD_NAMES[name]}"; give only one of them'
    if name in {field.name for field in dataclasses.fields(imagefolder.Params)}:
        return f'"{name}" is a key of the data set {data.OWN} only'
    return f'unknown key "{shorten(name)}"{suggest(name, fields)}'


def with_method(raw):
    """A copy of `raw` with new names of keys and an explicit "method". Raises UserError for an unknown method."""
    raw = with_new_names(raw)
    if "method" in raw and not isinstance(raw["method"], str):
        raise UserError(f'"method": must be a string, not {shorten(json.dumps(raw["method"], default=repr))}')
    return {"method": DEFAULT_METHODS[kind_of(raw)]} | raw


def with_new_names(raw):
    """A copy of `raw` in which keys that were renamed have their new names.

    If `raw` has both names of a key, the old one is kept, and `check` reports it.
    """
    new_names = {old: new for old, new in OLD_NAMES.items() if new not in raw}
    return {new_names.get(name, name): value for name, value in raw.items()}


def kind_of(raw):
    """The kind of experiment that `raw` describes: "scratch", "defend" or "attack"."""
    if isinstance(raw.get("method"), str):
        return method.kind(raw["method"])
    if "teacher_model" in raw or "teacher_resume" in raw:
        return "attack"
    return "defend" if "adversarial_model" in raw or "adversarial_resume" in raw else "scratch"


def schema(raw):
    """{name: dataclass field} of all keys of a run. They depend on its method, release, dataset and model_name."""
    fields = {field.name: field for part in (Common, *own_params(raw)) for field in dataclasses.fields(part)}
    if isinstance(raw.get("model_name"), str):
        try:
            options = model.options(raw["model_name"])
        except UserError as error:
            raise UserError(f'"model_name": {error}') from None
        for name, default in options.items():
            fields[name] = key(f"of {raw['model_name']}", default=default)
            fields[name].name, fields[name].type = name, type(default)
    return fields


def own_params(raw):
    """The `Params` classes of the method, the release rule (for an attack) and the data set (if imagefolder)."""
    parts = [method.find(raw["method"]).Params]
    if hasattr(parts[0], "release") and isinstance(raw.get("release"), str):
        parts.append(method.find_release(raw["release"]).Params)
    if raw.get("dataset") == data.OWN:
        parts.append(imagefolder.Params)
    return parts


def defaults(raw):
    """{key: default} of all keys that have a default in a run with the dictionary of parameters `raw`."""
    fields = schema(with_method(raw)).items()
    return {name: field.default for name, field in fields if field.default is not dataclasses.MISSING}


def inconsistent(values):
    """A list of messages about values that are valid on their own, but not together."""
    problems = []
    schedule = values["schedule"]
    if any(epoch < 0 for epoch in schedule) or any(a >= b for a, b in itertools.pairwise(schedule)):
        problems.append(f'"schedule": must be epochs in rising order, not {shorten(json.dumps(schedule))}')
    params, networks = types.SimpleNamespace(**values), {}
    data_spec = data.spec_of(params)
    for name in ("model_name", *(name for name in values if name.endswith("_model"))):
        options = model.options_in(values, values[name]) if name == "model_name" else {}
        try:
            networks[name] = build_without_weights(values[name], data_spec.num_classes, data_spec.image_size, **options)
        except UserError as error:
            problems.append(f'"{name}": {error}')
    if not problems:
        for part in own_params(values):
            problems += getattr(part, "problems", lambda *_: [])(params, networks)
    return problems


@functools.cache
def build_without_weights(model_name, num_classes, image_size, **options):
    """The network on the meta device, without memory for its weights. Raises UserError if it cannot be built."""
    try:
        with torch.device("meta"):
            return model.build(model_name, num_classes, image_size, **options)
    except RuntimeError as error:
        raise UserError(f"{model_name} cannot be built: {error}".splitlines()[0]) from None


def resolve(values):
    """A copy of `values` with resolved optimizer ("auto") and weight decay (null), and booleans instead of 0 and 1."""
    values = values | {name: bool(values[name]) for name in ("augmentation", "test_at_end", "cuda_graph", "cuda")}
    if values["optimizer"] == "auto":
        values["optimizer"] = "adam" if values["model_name"] in ("net", "mlp") else "sgd"
    if values["weight_decay"] is None:
        values["weight_decay"] = 5e-4 if values["optimizer"] == "sgd" else 0.0
    return values
