"""MobileNetV2. Sandler et al., Inverted Residuals and Linear Bottlenecks, CVPR 2018.

For CIFAR: the stem is a 1x1 convolution with padding 1 (32 -> 34 pixels), and only stages 2 to 4 have stride 2.
As in the released code of Nasty Teacher, convolutions have biases, stage 1 has an expansion layer with factor 1, and
the classifier is a 1x1 convolution.
"""

from torch import nn

from model.depthwise import Depthwise
from model.network import Network


def conv_bn(in_channels, out_channels, kernel_size=1, **options):
    return nn.Conv2d(in_channels, out_channels, kernel_size, **options), nn.BatchNorm2d(out_channels)


class InvertedResidual(nn.Module):
    def __init__(self, in_channels, out_channels, stride, expansion=6):
        super().__init__()
        width = expansion * in_channels
        self.residual = nn.Sequential(
            *conv_bn(in_channels, width),
            nn.ReLU6(inplace=True),
            Depthwise(width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
            *conv_bn(width, out_channels),
        )
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x):
        return x + self.residual(x) if self.adds else self.residual(x)


def stage(in_channels, out_channels, blocks, stride):
    first = InvertedResidual(in_channels, out_channels, stride)
    return nn.Sequential(first, *(InvertedResidual(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class MobileNetV2(Network):
    def __init__(self, num_classes):
        super().__init__()
        self.pre = nn.Sequential(*conv_bn(3, 32, padding=1), nn.ReLU6(inplace=True))
        self.stage1 = InvertedResidual(32, 16, 1, expansion=1)
        self.stage2 = stage(16, 24, 2, 2)
        self.stage3 = stage(24, 32, 3, 2)
        self.stage4 = stage(32, 64, 4, 2)
        self.stage5 = stage(64, 96, 3, 1)
        self.stage6 = stage(96, 160, 3, 1)
        self.stage7 = InvertedResidual(160, 320, 1)
        self.conv1 = nn.Sequential(*conv_bn(320, 1280), nn.ReLU6(inplace=True))
        self.conv2 = nn.Conv2d(1280, num_classes, 1)

    def features(self, images):
        x = self.stage3(self.stage2(self.stage1(self.pre(images))))
        x = self.stage7(self.stage6(self.stage5(self.stage4(x))))
        return self.conv1(x).mean((2, 3))

    def head(self, features):
        return self.conv2(features[:, :, None, None]).flatten(1)
