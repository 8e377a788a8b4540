"""DenseNet-BC. Huang et al., Densely Connected Convolutional Networks, CVPR 2017.

These are the ImageNet networks with a 3x3 stem and without max-pooling. As in the released code of Nasty
Teacher, transitions have no ReLU.
"""

import torch
from torch import nn

from model.network import Network

# depth: growth rate, layers per block
DEPTHS = {
    121: (32, (6, 12, 24, 16)),
    161: (48, (6, 12, 36, 24)),
    169: (32, (6, 12, 32, 32)),
    201: (32, (6, 12, 48, 32)),
}


class DenseLayer(nn.Module):
    def __init__(self, in_channels, growth):
        super().__init__()
        self.bottle_neck = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return torch.cat((x, self.bottle_neck(x)), 1)


class Transition(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.down_sample = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
            nn.AvgPool2d(2),
        )

    def forward(self, x):
        return self.down_sample(x)


class DenseNet(Network):
    def __init__(self, depth, num_classes):
        super().__init__()
        growth, blocks = DEPTHS[depth]
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        body = nn.Sequential()
        for i, layers in enumerate(blocks):
            if i > 0:
                body.add_module(f"transition_layer_{i - 1}", Transition(channels))
                channels //= 2
            block = nn.Sequential()
            for j in range(layers):
                block.add_module(f"bottle_neck_layer_{j}", DenseLayer(channels, growth))
                channels += growth
            # The name of the last block in the released checkpoints does not follow the pattern of the others.
            body.add_module(f"dense_block_layer_{i}" if i < 3 else "dense_block3", block)
        body.bn = nn.BatchNorm2d(channels)
        body.relu = nn.ReLU(inplace=True)
        # Names of weights in released checkpoints start with "features.", which is also the name of a method here.
        self._modules["features"] = body
        self.linear = nn.Linear(channels, num_classes)

    def features(self, images):
        return self._modules["features"](self.conv1(images)).mean((2, 3))

    def head(self, features):
        return self.linear(features)
