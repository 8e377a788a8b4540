"""Convolutions of small feature maps on a CPU in bf16.

oneDNN (3.13, AMX) computes a convolution along the rows of a map, so it is slow for short rows. This file places the
maps of up to 32 images side by side, with columns of zeros between them, and calls oneDNN for the resulting wide map.
The result is the same sum of products. For 512 channels on 4x4 maps and batch size 128, the forward pass and the input
gradient take half the time, and the weight gradient a quarter, including the copies. A 1x1 convolution of small maps
becomes a matrix product.
"""

from math import gcd

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

# Largest number of images side by side. Of 4, 8, 16, 32, 64 this was fastest for weight gradients (4x4 and 8x8 maps).
IMAGES = 32
# Largest output widths for which the wide map was faster in measurements:
FORWARD_WIDTH = 4  # for the forward pass; multiplied by the stride for the input gradient
WEIGHT_WIDTH = 8  # for the weight gradient, and for forward pass and gradients of a 1x1 convolution


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with one group and no dilation. The kernel is 1x1, or 3x3 with padding 1."""

    def forward(self, x):
        if not self.is_slow(x):
            return super().forward(x)
        if self.kernel_size == (1, 1):
            pixels = x.permute(0, 2, 3, 1)[:, :: self.stride[0], :: self.stride[1]]
            return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        with torch.autocast("cpu", enabled=False):
            return SideBySide.apply(x.to(torch.bfloat16), self.weight, self.bias, self.stride[0])

    def is_slow(self, x):
        """Whether oneDNN is slower for x than this file."""
        return (
            x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and x.is_contiguous(memory_format=torch.channels_last)
            and gcd(len(x), IMAGES) > 1
            and (x.shape[3] - 1) // self.stride[1] < WEIGHT_WIDTH
        )


class SideBySide(torch.autograd.Function):
    """A 3x3 convolution with padding 1 of x (N, C, H, W) in bf16. Weight and bias are rounded to bf16."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride):
        low = weight.to(x.dtype)
        ctx.save_for_backward(x, low)
        ctx.stride, ctx.weight_dtype = stride, weight.dtype
        ctx.bias_shape = None if bias is None else bias.shape
        bias = None if bias is None else bias.to(x.dtype)
        width = (x.shape[3] - 1) // stride + 1
        if width > FORWARD_WIDTH:
            return F.conv2d(x, low, bias, stride, padding=1)
        wide = to_wide(x, gap(x, stride))
        return from_wide(F.conv2d(wide, low, bias, stride, padding=1), len(x), width)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        width = grad.shape[3]

        def gradients(grad, x, *mask):
            ones, zeros = [1, 1], [0, 0]
            return torch.ops.aten.convolution_backward(
                grad, x, weight, ctx.bias_shape, [ctx.stride] * 2, ones, ones, False, zeros, 1, mask
            )

        x_grad = weight_grad = bias_grad = None
        narrow = width <= FORWARD_WIDTH * ctx.stride
        if wants_x and not narrow:
            x_grad = gradients(grad, x, True, False, False)[0]
        mask = wants_x and narrow, wants_weight, wants_bias
        if any(mask):
            wide = to_wide(x, gap(x, ctx.stride))
            wide_width = x.shape[3] + gap(x, ctx.stride)
            wide_grad = to_wide(grad, wide_width // ctx.stride - width)
            wide_x_grad, weight_grad, bias_grad = gradients(wide_grad, wide, *mask)
            if mask[0]:
                x_grad = from_wide(wide_x_grad, len(x), x.shape[3])
        if wants_weight:
            weight_grad = weight_grad.to(ctx.weight_dtype, memory_format=torch.channels_last)
        return x_grad, weight_grad, bias_grad, None


def gap(x, stride):
    """Columns of zeros after each image: at least 1, and such that images start at multiples of the stride."""
    return stride - x.shape[3] % stride


def to_wide(x, gap):
    """Place images side by side: (N, C, H, W) to (N / k, C, H, k (W + gap)), where k = gcd(N, IMAGES)."""
    images, channels, height, width = x.shape
    count = gcd(images, IMAGES)
    wide = x.new_zeros(images // count, height, count, width + gap, channels)
    wide[:, :, :, :width] = x.permute(0, 2, 3, 1).unflatten(0, (-1, count)).transpose(1, 2)
    return wide.flatten(2, 3).permute(0, 3, 1, 2)


def from_wide(wide, images, width):
    """The inverse of `to_wide`: (N, C, H, W) in channels_last."""
    count = gcd(images, IMAGES)
    x = wide.permute(0, 2, 3, 1).unflatten(2, (count, -1))[:, :, :, :width].transpose(1, 2)
    return x.flatten(0, 1).contiguous().permute(0, 3, 1, 2)
