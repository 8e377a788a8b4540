"""The model zoo. To add a network, add a file with a subclass of `Network`, and a line in `NETWORKS`.

A constructor takes the number of classes. Its keyword-only arguments are keys of params.json. A class that accepts only
one image size states it in the attribute `image_size`.
"""

import inspect
import re
from functools import partial

from model import densenet, preresnet, resnet
from model.densenet import DenseNet
from model.mlp import MLP
from model.mobilenetv2 import MobileNetV2
from model.net import Net
from model.resnet import ResNet
from model.resnext import ResNeXt29
from model.shufflenetv2 import ShuffleNetV2
from utils.errors import UserError, suggest
from utils.keys import shorten

NETWORKS = {
    "net": Net,
    "mlp": MLP,
    **{f"resnet{depth}": partial(ResNet, depth) for depth in resnet.DEPTHS},
    **{f"preresnet{depth}": preresnet.constructor(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"densenet{depth}": partial(DenseNet, depth) for depth in densenet.DEPTHS},
    "resnext29": ResNeXt29,
    "mobilenetv2": MobileNetV2,
    "shufflenetv2": ShuffleNetV2,
}


def build(model_name, num_classes, image_size=32, **options):
    """Build a network for images of `image_size` × `image_size` pixels. options: its keyword-only arguments."""
    network = find(model_name)(num_classes, **options)
    network.num_classes = num_classes
    only = getattr(network, "image_size", image_size)
    if image_size != only:
        raise UserError(f"{model_name} takes {only}x{only} images, not {image_size}x{image_size}")
    return network


def names():
    """The names of all networks, sorted. `preresnetN` can also be built with other depths N = 6n+2."""
    return sorted(NETWORKS)


def options(model_name):
    """{name: default} of the keys of params.json that this network takes."""
    parameters = inspect.signature(find(model_name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def options_in(params):
    """The options of the network `params.model_name` that are keys of `params`, such as `num_channels` of `net`."""
    return {name: getattr(params, name) for name in options(params.model_name)}


def find(model_name):
    if match := re.fullmatch(r"preresnet(\d{1,4})", model_name):
        return preresnet.constructor(int(match[1]))
    if model_name not in NETWORKS:
        there_are = ", ".join(names())
        raise UserError(
            f'unknown network "{shorten(model_name)}"; there are {there_are}{suggest(model_name, NETWORKS)}'
        )
    return NETWORKS[model_name]
