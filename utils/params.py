"""params.json: read, checked against the keys there are, defaults filled in.

The keys of every run are declared here, a method's own in its file (`Method.Params`), a network's own in its
constructor.
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
from utils.checkpoint import shown
from utils.data import DATASETS
from utils.errors import UserError, suggest
from utils.keys import key, wrong

IGNORED = ("cuda", "num_workers")
SCRIPTS = {"scratch": "train_scratch.py", "defend": "train_nasty.py", "attack": "train_kd.py"}


@dataclasses.dataclass
class Common:
    """The keys of every run."""

    model_name: str = key("the network that is trained")
    dataset: str = key("cifar10, cifar100, tiny_imagenet or digits", choices=tuple(DATASETS))
    method: str = key("file of method/, method/defend/ or method/attack/")
    num_epochs: int = key("passes over the training set; may grow when a run is continued", low=1)
    batch_size: int = key("images per step", low=1)
    learning_rate: float = key("at the first epoch", above=0)
    schedule: list[int] = key("epochs, counted from 0, at whose start the learning rate is multiplied by gamma")
    gamma: float = key("factor of the schedule", above=0)
    optimizer: str = key(
        "auto: adam for net and mlp, sgd for the rest", default="auto", choices=("auto", "sgd", "adam")
    )
    momentum: float = key("of sgd", default=0.9, low=0, below=1)
    weight_decay: float | None = key("null: 5e-4 with sgd, 0 with adam", default=None, low=0)
    augmentation: bool = key("random crops, flips and rotations as the data set has them", default=True)
    subset_percent: float = key("share of the training images that is used", default=1.0, above=0, high=1)
    resume: str | None = key("start from the weights in this checkpoint", default=None)
    seed: int = key("of initial weights, batches and augmentation", default=0, low=0)
    precision: str = key(
        "fp32, bf16 (autocast, losses in float32) or auto: bf16 where the hardware has it",
        default="fp32",
        choices=("fp32", "bf16", "auto"),
    )
    compile: bool = key("replay training steps as a CUDA graph; the plain path without a GPU", default=False)
    num_workers: int = key("accepted and ignored: images live on the device", default=0, low=0)
    cuda: bool = key("accepted and ignored: a GPU is used where there is one", default=True)


def load(folder, changes=()):
    """The checked parameters of `folder`/params.json, as a namespace with one attribute per key.

    changes: {key: value} that replace or add keys. Raises UserError with every problem found.
    """
    path = Path(folder) / "params.json"
    return check(read(path) | dict(changes), path)


def read(path):
    """The dictionary in the JSON file `path`; a UserError that says where it is malformed."""

    where = shown(path)

    def unique(pairs):
        repeated = {name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1}
        if repeated:
            raise UserError(f"{where}: {', '.join(sorted(repeated))}: written more than once")
        return dict(pairs)

    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise UserError(f"{where}: there is no such file; an experiment is a folder with a params.json") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f'{where}: must be one object, {{"key": value, ...}}')
    return raw


def parse_override(text):
    """("alpha", 0.5) from "alpha=0.5"; what is no JSON is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f'--set {text}: must be key=value, for example "--set alpha=0.5"')
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def changed(raw, changes):
    """A raw dictionary with `changes`; without the keys of a method, release or network that they replace."""
    new = raw | changes
    try:
        gone = schema(complete(raw)).keys() - schema(complete(new)).keys() - changes.keys()
    except UserError:  # which `check` will tell
        gone = ()
    return {name: value for name, value in new.items() if name not in gone}


def news(raw, changes):
    """Those of `changes` that `raw` does not say already, itself or by default."""
    try:
        usual = defaults(complete(raw))
    except UserError:  # which `check` will tell
        usual = {}
    return {name: value for name, value in changes.items() if raw.get(name, usual.get(name)) != value}


def complete(raw):
    """`raw` with the method that it means where it names none. UserError where it names one that cannot be."""
    if "method" in raw and not isinstance(raw["method"], str):
        raise UserError(f'"method": must be a string, not {json.dumps(raw["method"])}')
    return {"method": {"scratch": "scratch", "defend": "nasty", "attack": "kd"}[kind_of(raw)]} | raw


def kind_of(raw):
    """Which kind of experiment a raw dictionary describes: "scratch", "defend" or "attack"."""
    if isinstance(raw.get("method"), str):
        return method.kind(raw["method"])
    if "teacher_model" in raw or "teacher_resume" in raw:
        return "attack"
    return "defend" if "adversarial_model" in raw or "adversarial_resume" in raw else "scratch"


def kind_in(path, changes=()):
    """`kind_of` the params.json `path` with `changes`."""
    raw = read(path)
    try:
        return kind_of(changed(raw, dict(changes)))
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None


def check(raw, path):
    """`raw` with defaults filled in, as a namespace. UserError lists everything that is wrong with it."""
    raw = dict(raw)
    try:
        raw = complete(raw)
        fields = schema(raw)
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None
    problems = [f'unknown key "{name}"{suggest(name, fields)}' for name in raw if name not in fields]
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
        raise UserError(f"{shown(path)}: " + "\n  ".join(["", *problems] if len(problems) > 1 else problems))
    return types.SimpleNamespace(**resolve(values))


def schema(raw):
    """{name: dataclass field} of all the keys that a run with this `method`, `release` and `model_name` has."""
    fields = {field.name: field for part in (Common, *parts(raw)) for field in dataclasses.fields(part)}
    if isinstance(raw.get("model_name"), str):
        for name, default in model.options(raw["model_name"]).items():
            fields[name] = key(f"of {raw['model_name']}", default=default)
            fields[name].name, fields[name].type = name, type(default)
    return fields


def parts(raw):
    """The `Params` of a run's method and, where it has one, of its teacher's release rule."""
    found = [method.find(raw["method"]).Params]
    if hasattr(found[0], "release") and isinstance(raw.get("release"), str):
        found.append(method.find_release(raw["release"]).Params)
    return found


def inconsistent(values):
    """Problems that show only when keys are seen together: a list of lines."""
    problems = []
    schedule = values["schedule"]
    if any(epoch < 0 for epoch in schedule) or any(a >= b for a, b in itertools.pairwise(schedule)):
        problems.append(f'"schedule": must be epochs in rising order, not {json.dumps(schedule)}')
    spec, params, networks = DATASETS[values["dataset"]], types.SimpleNamespace(**values), {}
    for name in ("model_name", *(name for name in values if name.endswith("_model"))):
        options = model_options(params) if name == "model_name" else {}
        try:
            network = build_without_weights(values[name], spec.num_classes, spec.image_size, **options)
        except UserError as error:
            problems.append(f'"{name}": {error}')
        else:
            networks[name] = network
    if not problems:
        for part in parts(values):
            problems += getattr(part, "problems", lambda *_: [])(params, networks)
    return problems


@functools.cache
def build_without_weights(model_name, num_classes, image_size, **options):
    """The network without memory for its weights, at next to no cost; or the UserError that says why there is none."""
    try:
        with torch.device("meta"):
            return model.build(model_name, num_classes, image_size, **options)
    except RuntimeError as error:
        raise UserError(f"{model_name} cannot be built: {error}".splitlines()[0]) from None


def model_options(params):
    """The keys of `params` that are options of its network, such as `num_channels` of `net`."""
    return {name: getattr(params, name) for name in model.options(params.model_name)}


def resolve(values):
    """`values` with what "auto" and null stand for, and 0 and 1 as booleans."""
    values = values | {name: bool(values[name]) for name in ("augmentation", "compile", "cuda")}
    if values["optimizer"] == "auto":
        values["optimizer"] = "adam" if values["model_name"] in ("net", "mlp") else "sgd"
    if values["weight_decay"] is None:
        values["weight_decay"] = 5e-4 if values["optimizer"] == "sgd" else 0.0
    return values


def for_all_runs(changes):
    """`changes`, keys that can be changed in every run of a table alike. UserError where they cannot."""
    fixed = {"model_name", "method", "resume", "seed"}
    keys = [field.name for field in dataclasses.fields(Common) if field.name not in fixed]
    for name in changes:
        if name not in keys:
            hint = "; seeds are given with --seeds" if name == "seed" else suggest(name, keys)
            raise UserError(f"--set {name}: is no key that all runs share; these are {', '.join(keys)}{hint}")
    return changes


def differences(old, new):
    """Lines that name the keys in which two dictionaries of parameters differ; `num_epochs` may grow."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        grown = name == "num_epochs" and isinstance(before, int) and isinstance(after, int) and after > before
        if name not in IGNORED and before != after and not grown:
            lines.append(f'"{name}": there {json.dumps(before)}, here {json.dumps(after)}')
    return lines


def differences_to_run(ran, wanted):
    """`differences` of a run's parameters, as its checkpoint has them, to those `wanted` of it now."""
    return differences(defaults(wanted) | ran, wanted)  # a key that is younger than the run had what is its default now


def defaults(values):
    """{key: default} of the keys that have one, for a run with these checked parameters (a dictionary)."""
    fields = schema(values).items()
    return {name: field.default for name, field in fields if field.default is not dataclasses.MISSING}
