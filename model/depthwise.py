"""The depthwise convolution of the mobile networks."""

import torch
import torch.nn.functional as F
from torch import nn


class Depthwise(nn.Conv2d):
    """A 3x3 depthwise convolution of images (N, C, H, W).

    On a CPU under bf16 autocast, a strided convolution rounds its inputs and weights to bf16 and computes in float32,
    because PyTorch's gradient of a strided depthwise convolution in bf16 takes 40 times as long.
    """

    def __init__(self, channels, stride):
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels)

    def forward(self, x):
        if self.stride == (1, 1) or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        low = torch.get_autocast_dtype("cpu")
        rounded = (tensor.to(low).float() for tensor in (x, self.weight, self.bias))
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(*rounded, self.stride, self.padding, groups=self.groups).to(low)
