"""The interface between a method and the training engine, and functions that find a method by the name of its file.

Symbols in the headers of method files: x is an image, y its label, C the number of classes, and σ the softmax. CE is
the cross-entropy and KL the Kullback-Leibler divergence, both averaged over a batch. Networks return logits. OURS marks
what is not published and was chosen here.
"""

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from method.release import Release
from utils.errors import UserError, suggest
from utils.keys import shorten
from utils.metrics import evaluate

FOLDERS = ("defend", "attack")


class Method:
    """The base class of methods. `self.model` is the network that is trained, evaluated and saved.

    params: the checked keys of params.json, including those in `Params`. zoo: builds networks for the data set and
    device of this run. `zoo.trained(params)` returns the network to train, `zoo.fresh(name, **options)` a network with
    random weights, and `zoo.frozen(name, checkpoint)` one with the weights of a checkpoint, in eval mode and without
    gradients.
    """

    @dataclass
    class Params:
        """The keys that this method adds to params.json; see `utils.keys.key`.

        An optional static method `problems(params, networks)` checks combinations of keys, after each key has been
        checked alone. It returns a list of error messages of one line each. networks: {key: network on the meta device}
        for "model_name" and every key that ends in "_model".
        """

    def __init__(self, params, zoo):
        self.params, self.zoo = params, zoo
        self.model = zoo.trained(params)

    def begin(self, run):
        """Called once before training. The method may write files to `run.folder`. `run.log(line)` logs a line."""

    @property
    def trained(self):
        """The module whose parameters the optimizer updates. The engine puts it into train mode for each epoch."""
        return self.model

    def losses(self, images, labels):
        """Return {"loss": the scalar to minimise, and other terms to log} for one batch of `batches`."""
        raise NotImplementedError

    def batches(self, loader):
        """Return the training batches of one epoch. loader: yields (images, labels); `loader.epoch` counts from 0."""
        return loader

    def evaluate(self, loader):
        """Return {"acc": accuracy in percent, "loss": cross-entropy, other terms to log} on the images of `loader`."""
        return evaluate(self.model, loader)

    def final(self, loader):
        """Return the terms that are written to test.json at the end of a run with `test_at_end`."""
        return self.evaluate(loader)

    def queries(self, batch):
        """Return the number of images that a teacher answers in a training step on `batch`."""
        return 0

    def extra(self):
        """Return {name: object with a state_dict}: further state that is saved and restored with the run."""
        return {}


def kind(name):
    """The kind of the file `name`: "scratch", "defend" or "attack". Raises UserError unless there is one such file."""
    kinds = [kind for kind, members in files().items() if name in members]
    if len(kinds) > 1:
        found = " and ".join(f"method/{kind}/{name}.py" for kind in kinds)
        raise UserError(f'"{name}": {found} have the same name; rename one of them')
    if kinds:
        return kinds[0]
    known = sorted(method for methods in names().values() for method in methods)
    raise UserError(f'unknown method "{shorten(name)}"; there are {", ".join(known)}{suggest(name, known)}')


def find(name):
    """The Method class in the file of this name."""
    found = member(kind(name), name, Method)
    if found is None:
        raise UserError(
            f'"{name}" is a release rule, not a method; use "release": "{name}" in a student\'s params.json'
        )
    return found


def find_release(name):
    """The Release class in the file of the defence `name`. "logits" is the rule that does not change the logits."""
    if name == "logits":
        return Release
    if not is_release(name):
        rules = ["logits", *filter(is_release, files()["defend"])]
        raise UserError(
            f'unknown release "{shorten(name)}"; there are {", ".join(sorted(rules))}{suggest(name, rules)}'
        )
    return member("defend", name, Release)


def is_release(name):
    """Whether the file of the defence `name` defines a release rule."""
    return name in files()["defend"] and member("defend", name, Release) is not None


def names():
    """{"scratch": [...], "defend": [...], "attack": [...]}: the names of all methods."""
    return {kind: [name for name in members if member(kind, name, Method)] for kind, members in files().items()}


@functools.cache
def files():
    """{kind: [names of files]}, read from the folders once. Do not modify the dictionary."""
    here = Path(__file__).parent
    return {"scratch": ["scratch"]} | {
        kind: sorted(module.name for module in pkgutil.iter_modules([here / kind])) for kind in FOLDERS
    }


@functools.cache
def member(kind, name, base):
    """The subclass of `base` defined in the file of this name, or None."""
    module = importlib.import_module("method.scratch" if kind == "scratch" else f"method.{kind}.{name}")
    classes = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    return next((item for item in classes if issubclass(item, base)), None)
