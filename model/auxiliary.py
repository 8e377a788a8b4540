"""Auxiliary heads: small classifiers on the outputs of a network's stages. They are not part of the network."""

import re

import torch.nn.functional as F
from torch import nn

from model.depthwise import Depthwise

# Names of the stages in most networks, in densenet, and in net
STAGES = (r"(layer|stage_?)\d", r"features\.dense_block(_layer_)?\d", r"bn\d")
MAX_CHANNELS = 512  # largest number of channels of a head, unless its stage has more


def stages(network):
    """The stages of a network, in order. Their outputs are (N, channels, H, W). [] if no stages are found."""
    for pattern in STAGES:
        modules = [module for name, module in network.named_modules() if re.fullmatch(pattern, name)]
        if modules:
            return [module for module in modules if not isinstance(module, nn.Identity)]
    return []


def separable(channels, out_channels):
    """A separable 3x3 convolution of stride 2: a depthwise and then a pointwise convolution."""
    pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)
    return nn.Sequential(Depthwise(channels, 2), pointwise, nn.BatchNorm2d(out_channels), nn.ReLU())


class Head(nn.Module):
    """A classifier on outputs (N, channels, size, size): ReLU, a gate, and convolutions until the size is at most 4."""

    def __init__(self, channels, size, num_classes):
        super().__init__()
        self.gate = nn.Sequential(separable(channels, channels), nn.Upsample(size), nn.Sigmoid())
        layers = []
        while size > 4:
            out_channels = max(channels, min(2 * channels, MAX_CHANNELS))
            layers.append(separable(channels, out_channels))
            channels, size = out_channels, (size + 1) // 2
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def forward(self, x):
        x = F.relu(x)  # for networks whose stages do not end with a ReLU; no effect on a ResNet
        return self.layers(self.gate(x) * x)
