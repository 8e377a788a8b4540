"""ResNeXt-29, 8x64d, for CIFAR. Xie et al., Aggregated Residual Transformations, CVPR 2017.

It has a 3x3 stem and three stages of three bottlenecks.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import nn

from model.network import Network


class Bottleneck(nn.Module):
    def __init__(self, in_channels, width, out_channels, stride):
        """width: number of channels of all groups of the grouped convolution together."""
        super().__init__()
        self.conv_reduce = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(width)
        self.conv_conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=8, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv_expand = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels:
            self.shortcut.shortcut_conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut.shortcut_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        out = F.relu(self.bn_reduce(self.conv_reduce(x)))
        out = F.relu(self.bn(self.conv_conv(out)))
        out = self.bn_expand(self.conv_expand(out))
        return F.relu(out + self.shortcut(x))


def stage(name, in_channels, width, stride):
    out_channels = width // 2
    blocks = [Bottleneck(in_channels, width, out_channels, stride)]
    blocks += [Bottleneck(out_channels, width, out_channels, 1) for _ in range(2)]
    return nn.Sequential(OrderedDict((f"{name}_bottleneck_{i}", block) for i, block in enumerate(blocks)))


class ResNeXt29(Network):
    def __init__(self, num_classes):
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        self.stage_1 = stage("stage_1", 64, 512, 1)
        self.stage_2 = stage("stage_2", 256, 1024, 2)
        self.stage_3 = stage("stage_3", 512, 2048, 2)
        self.classifier = nn.Linear(1024, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def features(self, images):
        x = F.relu(self.bn_1(self.conv_1_3x3(images)))
        return self.stage_3(self.stage_2(self.stage_1(x))).mean((2, 3))

    def head(self, features):
        return self.classifier(features)
