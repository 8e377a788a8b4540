"""Auxiliary heads: small classifiers of what a network's stages put out. They serve training only."""

import re

import torch.nn.functional as F
from torch import nn

from model.depthwise import Depthwise

# Parts whose outputs are stages, in most networks, densenet, net
STAGES = (r"(layer|stage_?)\d", r"features\.dense_block(_layer_)?\d", r"bn\d")
WIDEST = 512  # channels of a head, unless its stage has more


def stages(network):
    """The parts of a network, in order, whose outputs (N, channels, H, W) a head may read; [] where there are none."""
    for pattern in STAGES:
        found = [part for name, part in network.named_modules() if re.fullmatch(pattern, name)]
        if found:
            return [part for part in found if not isinstance(part, nn.Identity)]
    return []


def separable(channels, out_channels):
    """A 3x3 convolution of stride 2: depthwise, then pointwise."""
    pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)
    return nn.Sequential(Depthwise(channels, 2), pointwise, nn.BatchNorm2d(out_channels), nn.ReLU())


class Head(nn.Module):
    """A classifier of outputs (N, channels, size, size): ReLU, a gate, then convolutions down to 4 pixels."""

    def __init__(self, channels, size, num_classes):
        super().__init__()
        self.gate = nn.Sequential(separable(channels, channels), nn.Upsample(size), nn.Sigmoid())
        layers = []
        while size > 4:
            wider = max(channels, min(2 * channels, WIDEST))
            layers.append(separable(channels, wider))
            channels, size = wider, (size + 1) // 2
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def forward(self, x):
        x = F.relu(x)  # changes nothing after the ReLU of a ResNet's stage; other stages end without one
        return self.layers(self.gate(x) * x)
