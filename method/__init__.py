"""The contract between a paper's idea and the engine, and how a method is found: by its file's name."""

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, suggest


class Method:
    """What is trained and how. The network in `self.model` is trained, evaluated and saved.

    params: the checked keys of params.json, those in `Params` among them. zoo: makes networks for this run's
    data set and device: `zoo.fresh(name, **options)`, `zoo.frozen(name, checkpoint)`.
    """

    @dataclass
    class Params:
        """The keys that this method adds to params.json; see `utils.keys.key`."""

    def __init__(self, params, zoo):
        self.params, self.zoo = params, zoo
        self.model = zoo.trained(params)

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


def names():
    """{"scratch": [...], "defend": [...], "attack": [...]}: the methods there are, by kind."""
    here = Path(__file__).parent
    return {
        kind: sorted(module.name for module in pkgutil.iter_modules([here / kind])) for kind in ("defend", "attack")
    } | {"scratch": ["scratch"]}


def kind(name):
    """ "scratch", "defend" or "attack", whichever has a method of this name. UserError lists the names there are."""
    found = names()
    for kind, members in found.items():
        if name in members:
            return kind
    known = sorted(member for members in found.values() for member in members)
    raise UserError(f'unknown method "{name}"; there are {", ".join(known)}{suggest(name, known)}')


def find(name):
    """The Method class in the file of this name."""
    where = kind(name)
    module = importlib.import_module("method.scratch" if where == "scratch" else f"method.{where}.{name}")
    return next(
        member
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, Method) and member.__module__ == module.__name__
    )
