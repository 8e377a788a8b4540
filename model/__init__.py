"""The networks. Each file in this folder that defines a subclass of `Network` is a network with the name of the file.

A constructor takes the number of classes. Its keyword-only arguments are keys of params.json. A class that accepts only
one image size has the attribute `image_size`. A file with `DEPTHS` defines one network for each depth: "resnet18" is
depth 18 of resnet.py. The first argument of its class is the depth, unless the file has a function
`constructor(depth)`. This function returns the constructor for a depth, and may accept depths that are not in `DEPTHS`.
"""

import importlib
import inspect
import pkgutil
import re
from functools import cache, partial

from model import pretrained
from model.foreign import Foreign
from model.network import Network
from utils import checkpoint
from utils.errors import UserError, suggest
from utils.keys import shorten

BASES = ("network", "foreign")  # files with a class that is not selected by the name of the file


def build(model_name, num_classes, image_size=32, **options):
    """Build a network for images of `image_size` × `image_size` pixels.

    options: the keyword-only arguments of the network's constructor. Raises UserError if the name is unknown, or if the
    network does not accept the image size or the value of an option.
    """
    network = find(model_name)(num_classes, **options)
    network.num_classes = num_classes
    required = getattr(network, "image_size", image_size)
    if image_size != required:
        raise UserError(f"{model_name} takes {required}x{required} images, not {image_size}x{image_size}")
    return network


def load_model(name):
    """A trained network of model/pretrained.json, such as "digits/nasty", on the CPU, in eval mode.

    `network.card` has the data set, accuracy, mean and standard deviation of the images, origin and licence.
    """
    card, file = pretrained.locate(name)
    network = build(card["model_name"], card["num_classes"], card["image_size"], **card["options"])
    checkpoint.load_weights(network, checkpoint.load(file), file)
    network.card = card
    return network.eval()


def names():
    """The names of all networks, sorted. `preresnetN` can also be built with other depths N = 6n+2."""
    networks = []
    for file in files():
        if class_in(file):
            networks += [f"{file}{depth}" for depth in getattr(module(file), "DEPTHS", [""])]
    return sorted(networks)


@cache
def options(model_name):
    """{name: default} of the keys of params.json that this network takes. Do not modify the dictionary."""
    parameters = inspect.signature(find(model_name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def options_in(params, model_name):
    """The items of the dictionary `params` that are options of a network, such as `num_channels` of `net`."""
    return {name: params[name] for name in options(model_name) if name in params}


def find(model_name):
    """The constructor of a network: a function of the number of classes. Raises UserError for an unknown name."""
    if ":" in model_name:  # a function of the user's own code
        return partial(Foreign, model_name)
    name, depth = re.fullmatch(r"(.*?)(\d{0,4})", model_name, re.S).groups()
    if has_network(model_name) and not hasattr(module(model_name), "DEPTHS"):
        return class_in(model_name)
    if depth and has_network(name):
        if hasattr(module(name), "constructor"):
            return module(name).constructor(int(depth))
        if int(depth) in getattr(module(name), "DEPTHS", ()):
            return partial(class_in(name), int(depth))
    raise UserError(
        f'unknown network "{shorten(model_name)}"; there are {", ".join(names())}{suggest(model_name, names())}'
    )


@cache
def files():
    """The names of the files in this folder that may define a network, read once. Do not modify the list."""
    return [file.name for file in pkgutil.iter_modules(__path__) if file.name not in BASES]


def has_network(file):
    """Whether the file of this name defines a network."""
    return file in files() and class_in(file) is not None


def module(file):
    return importlib.import_module(f"model.{file}")


@cache
def class_in(file):
    """The subclass of `Network` that is defined in the file of this name, or None."""
    defined = [item for item in vars(module(file)).values() if getattr(item, "__module__", None) == f"model.{file}"]
    return next((item for item in defined if isinstance(item, type) and issubclass(item, Network)), None)
