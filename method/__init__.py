"""The contract between a paper's idea and the engine, and how a method is found: by its file's name."""

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from method.release import Release
from utils.errors import UserError, suggest

KINDS = ("defend", "attack")


class Method:
    """What is trained and how. The network in `self.model` is trained, evaluated and saved.

    params: the checked keys of params.json, those in `Params` among them. zoo: makes networks for this run's
    data set and device: `zoo.fresh(name, **options)`, `zoo.frozen(name, checkpoint)`. `folder`: where a run may leave
    more than its metrics, such as images.
    """

    folder = None

    @dataclass
    class Params:
        """The keys that this method adds to params.json; see `utils.keys.key`.

        A static method `problems(params, networks)`, where there is one, lists what is wrong with them seen together:
        lines that name a key. networks: {"model_name": the network, without memory for its weights, and likewise
        each other key that ends in "_model"}. Nothing has been read or trained by then.
        """

    def __init__(self, params, zoo):
        self.params, self.zoo = params, zoo
        self.model = zoo.trained(params)

    def log(self, line):
        """Say something in the run's training.log; where there is a run, it puts its own in the place of this."""

    @property
    def trained(self):
        """What the optimizer trains, and what is in train mode meanwhile: the network, or a part of it, or more."""
        return self.model

    def losses(self, images, labels):
        """{"loss": the scalar to minimise, and any other terms to log} for what `batches` yields."""
        raise NotImplementedError

    def batches(self, loader):
        """The training batches of one epoch. loader: yields (images, labels); `loader.epoch` counts from 0."""
        return loader

    def evaluate(self, loader):
        """{"acc": test accuracy in percent, "loss": cross-entropy, and whatever else is worth logging}."""
        from utils.engine import score

        return score(self.model, loader)

    def extra(self):
        """{name: object with a state_dict}: what else an interrupted run must not lose."""
        return {}


def kind(name):
    """ "scratch", "defend" or "attack", whichever has a method of this name. UserError lists the names there are."""
    for kind, members in files().items():
        if name in members:
            return kind
    known = sorted(name for members in names().values() for name in members)
    raise UserError(f'unknown method "{name}"; there are {", ".join(known)}{suggest(name, known)}')


def find(name):
    """The Method class in the file of this name."""
    found = member(kind(name), name, Method)
    if found is None:
        raise UserError(f'"{name}" is no method, but a way to answer: "release": "{name}" in a student\'s params.json')
    return found


def find_release(name):
    """The Release class in the file of the defence of this name; "logits" is the plain one."""
    rules = {rule: found for rule in files()["defend"] if (found := member("defend", rule, Release))}
    rules["logits"] = Release
    if name not in rules:
        raise UserError(f'unknown release "{name}"; there are {", ".join(sorted(rules))}{suggest(name, rules)}')
    return rules[name]


def names():
    """{"scratch": [...], "defend": [...], "attack": [...]}: the methods there are, by kind."""
    return {kind: [name for name in members if member(kind, name, Method)] for kind, members in files().items()}


def files():
    """{kind: [the files' names]}, read from the folders."""
    here = Path(__file__).parent
    return {"scratch": ["scratch"]} | {
        kind: sorted(module.name for module in pkgutil.iter_modules([here / kind])) for kind in KINDS
    }


def member(kind, name, base):
    """The class derived from `base` that the file of this name defines, or None."""
    module = importlib.import_module("method.scratch" if kind == "scratch" else f"method.{kind}.{name}")
    own = [found for found in vars(module).values() if isinstance(found, type) and found.__module__ == module.__name__]
    return next((found for found in own if issubclass(found, base)), None)
