"""ShuffleNet V2, width 1. Ma et al., Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018.

For CIFAR: the stem is a 3x3 convolution with stride 1, without ReLU and pooling. As in the released code of
Nasty Teacher, convolutions have biases.
"""

import torch
from torch import nn

from model.depthwise import Depthwise
from model.network import Network


def interleave(first, second):
    """Interleave channels: first[0], second[0], first[1], ... This is concatenation and channel shuffle in one copy.

    The result has the memory format of `second`, so a network in channels_last stays in channels_last.
    """
    if second.is_contiguous(memory_format=torch.channels_last):
        pairs = torch.stack((first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1)), -1)
        return pairs.flatten(3).permute(0, 3, 1, 2)
    return torch.stack((first, second), 2).flatten(1, 2)


def pointwise(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def depthwise(channels, stride):
    return Depthwise(channels, stride), nn.BatchNorm2d(channels)


class BasicUnit(nn.Module):
    """A unit that keeps the shape. Half of the channels pass through unchanged."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.residual = nn.Sequential(*pointwise(half, half), *depthwise(half, 1), *pointwise(half, half))

    def forward(self, x):
        passed, changed = x.chunk(2, 1)
        return interleave(passed, self.residual(changed))


class DownUnit(nn.Module):
    """A unit that halves the resolution. Both branches take all channels as input."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        half = out_channels // 2
        self.residual = nn.Sequential(
            *pointwise(in_channels, in_channels), *depthwise(in_channels, 2), *pointwise(in_channels, half)
        )
        self.shortcut = nn.Sequential(*depthwise(in_channels, 2), *pointwise(in_channels, half))

    def forward(self, x):
        return interleave(self.shortcut(x), self.residual(x))


def stage(in_channels, out_channels, units):
    return nn.Sequential(DownUnit(in_channels, out_channels), *(BasicUnit(out_channels) for _ in range(units - 1)))


class ShuffleNetV2(Network):
    def __init__(self, num_classes):
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24))
        self.stage2 = stage(24, 116, 4)
        self.stage3 = stage(116, 232, 8)
        self.stage4 = stage(232, 464, 4)
        self.conv5 = nn.Sequential(*pointwise(464, 1024))
        self.fc = nn.Linear(1024, num_classes)

    def features(self, images):
        x = self.stage4(self.stage3(self.stage2(self.pre(images))))
        return self.conv5(x).mean((2, 3))

    def head(self, features):
        return self.fc(features)
