"""Networks from the user's own code, "package.module:function" or "path/file.py:function".

The function is called with the number of classes and returns a `torch.nn.Module`. Importing the function runs the
user's code. So such names are accepted from the command line and from params.json, but never from a checkpoint.
"""

import contextlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

import torch
from torch import nn

from model.network import Network, at_least_float32
from utils.errors import UserError, suggest
from utils.paths import display_path, from_root

SMALLEST = 1e-12  # smaller probabilities are replaced by this value, so that their logarithms are finite


class Foreign(Network):
    """The module that a function of the user returns, as a Network with logits, but without `features` and `head`.

    probabilities: whether the module returns probabilities; their logarithms are then the logits. Weights are float32.
    The state_dict is that of the module.
    """

    def __init__(self, name, num_classes, *, probabilities=False):
        super().__init__()
        self.name, self.probabilities = name, probabilities
        self.module = make(name, num_classes).float()

    def forward(self, images, with_features=False):
        if with_features:
            self.features(images)  # raises UserError
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            answers = self.module(images)
        if not torch.is_tensor(answers):
            raise UserError(f"{self.name}: returns {type(answers).__name__}, not a tensor of logits")
        logits = at_least_float32(answers)
        return logits.clamp_min(SMALLEST).log() if self.probabilities else logits

    def features(self, images):
        raise UserError(no_features(self.name, "this method"))

    def state_dict(self, *args, **kwargs):
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        return self.module.load_state_dict(*args, **kwargs)


def no_features(name, method):
    """The error message if `method`, the name of a method, needs the features of the foreign network `name`."""
    return f"{name} is a network of other code, which returns only logits; {method} needs its features"


def canonical(name):
    """`name` with the path of its file relative to the project root, or absolute if the file lies elsewhere."""
    location, _, function = name.rpartition(":")
    return f"{display_path(Path(location).resolve())}:{function}" if location.endswith(".py") else name


def source(name):
    """The content of the file of the function `name`, as bytes."""
    location = name.rpartition(":")[0]
    file = from_root(location) if location.endswith(".py") else Path(importlib.util.find_spec(location).origin)
    return file.read_bytes()


def make(name, num_classes):
    """The module that the function `name` returns, on the CPU. PyTorch's random state does not change."""
    with importable(name), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        function = find_function(name)
        try:
            by_name = "num_classes" in inspect.signature(function).parameters or takes_any_keyword(function)
            module = function(num_classes=num_classes) if by_name else function(num_classes)
        except Exception as error:
            raise UserError(f"{name}({num_classes}) failed: {one_line(error)}") from None
    if not isinstance(module, nn.Module):
        raise UserError(f"{name}({num_classes}): returned {type(module).__name__}, not a torch.nn.Module")
    if next(module.parameters(), None) is None:
        raise UserError(f"{name}({num_classes}): returned a module without weights")
    return module


def takes_any_keyword(function):
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


@contextlib.contextmanager
def importable(name):
    """In this context, the modules beside the file of `name` can be imported, as in a script in the same folder."""
    location = name.rpartition(":")[0]
    before = sys.path.copy()
    if location.endswith(".py"):
        sys.path.insert(0, str(from_root(location).resolve().parent))
    try:
        yield
    finally:
        sys.path[:] = before


def find_function(name):
    location, _, function = name.rpartition(":")
    if location.endswith(".py") and not from_root(location).is_file():
        raise UserError(f"{name}: there is no file {location}")
    try:
        module = run_file(from_root(location)) if location.endswith(".py") else importlib.import_module(location)
    except Exception as error:
        raise UserError(f"{name}: {location} cannot be imported: {one_line(error)}") from None
    attribute = getattr(module, function, None)
    if not callable(attribute):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(f"{name}: {location} has no function {function}{suggest(function, known)}")
    return attribute


def run_file(path):
    """Execute a Python file, and return it as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]
