"""ResNet. He et al., Deep Residual Learning for Image Recognition, CVPR 2016.

resnet18, 34, 50, 101 and 152 are the ImageNet networks with a 3x3 stem and no max-pooling. resnet8, 20 and 32 are the
paper's CIFAR networks with 6n+2 layers: three stages of n blocks with 16, 32 and 64 channels. If a block changes the
shape, its shortcut is a convolution (option B of the paper).
"""

import torch.nn.functional as F
from torch import nn

from model.conv import Conv2d
from model.network import Network


def shortcut(in_channels, out_channels, stride):
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels, width, stride):
        super().__init__()
        self.conv1 = Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(in_channels, width, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels, width, stride):
        super().__init__()
        self.conv1 = Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut(in_channels, 4 * width, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


# depth: block, channels of the stem, blocks per stage
DEPTHS = {
    8: (BasicBlock, 16, (1, 1, 1)),
    20: (BasicBlock, 16, (3, 3, 3)),
    32: (BasicBlock, 16, (5, 5, 5)),
    18: (BasicBlock, 64, (2, 2, 2, 2)),
    34: (BasicBlock, 64, (3, 4, 6, 3)),
    50: (Bottleneck, 64, (3, 4, 6, 3)),
    101: (Bottleneck, 64, (3, 4, 23, 3)),
    152: (Bottleneck, 64, (3, 8, 36, 3)),
}


def stage(block, in_channels, width, count, stride):
    """A sequence of `count` blocks. Only the first one may change the shape."""
    channels = block.expansion * width
    shapes = [(in_channels, width, stride)] + [(channels, width, 1)] * (count - 1)
    return nn.Sequential(*(block(*shape) for shape in shapes))


class ResNet(Network):
    def __init__(self, depth, num_classes):
        super().__init__()
        block, width, counts = DEPTHS[depth]
        channels = block.expansion * width  # after the first stage
        self.conv1 = Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(block, width, width, counts[0], 1)
        self.layer2 = stage(block, channels, 2 * width, counts[1], 2)
        self.layer3 = stage(block, 2 * channels, 4 * width, counts[2], 2)
        self.layer4 = nn.Identity()
        if len(counts) == 4:
            self.layer4 = stage(block, 4 * channels, 8 * width, counts[3], 2)
        self.linear = nn.Linear(channels * 2 ** (len(counts) - 1), num_classes)

    def features(self, images):
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))

    def head(self, features):
        return self.linear(features)
