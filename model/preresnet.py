"""Pre-activation ResNet for CIFAR. He et al., Identity Mappings in Deep Residual Networks, ECCV 2016.

There are three stages of n blocks. The number in a name is 6n+2, the number of layers. As in the released code of Nasty
Teacher, preresnet44 and deeper networks have n bottleneck blocks per stage. They have 9n+2 layers, but the number in
the name is still 6n+2. The input of the projection shortcut is the block's input before batch norm and ReLU.
"""

from functools import partial
from math import sqrt

import torch.nn.functional as F
from torch import nn

from model.conv import Conv2d
from model.network import Network
from model.resnet import stage
from utils.errors import UserError

DEPTHS = (8, 14, 20, 32, 44, 56, 110)  # the depths in lists of networks; `constructor` builds other depths, too


def shortcut(in_channels, out_channels, stride):
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(Conv2d(in_channels, out_channels, 1, stride, bias=False))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels, width, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.downsample = shortcut(in_channels, width, stride)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + self.downsample(x)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels, width, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = Conv2d(width, 4 * width, 1, bias=False)
        self.downsample = shortcut(in_channels, 4 * width, stride)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + self.downsample(x)


class PreResNet(Network):
    image_size = 32  # the released network ends in an 8x8 average pool, which is global for 32x32 images only

    def __init__(self, block, count, num_classes):
        super().__init__()
        expansion = block.expansion
        self.conv1 = Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = stage(block, 16, 16, count, 1)
        self.layer2 = stage(block, 16 * expansion, 32, count, 2)
        self.layer3 = stage(block, 32 * expansion, 64, count, 2)
        self.bn = nn.BatchNorm2d(64 * expansion)
        self.fc = nn.Linear(64 * expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=sqrt(2 / fan_out))

    def features(self, images):
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return F.relu(self.bn(x)).mean((2, 3))

    def head(self, features):
        return self.fc(features)


def constructor(depth):
    """A function of num_classes that builds the PreResNet of this depth."""
    count, rest = divmod(depth - 2, 6)
    if count < 1 or rest:
        raise UserError(f"the depth of a preresnet must be 6n+2 (8, 14, 20, ...), not {depth}")
    return partial(PreResNet, BasicBlock if depth < 44 else Bottleneck, count)
