"""The depthwise convolution of the mobile networks."""

import torch
import torch.nn.functional as F
from torch import nn


class Depthwise(nn.Conv2d):
    """A 3x3 convolution of each channel (N, C, H, W) by itself.

    On a CPU a strided one multiplies what autocast has rounded to bf16 in float32, to the same effect: the library's
    own gradient of a bf16 input takes 40 times as long there.
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
