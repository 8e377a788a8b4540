"""The image generator of DAFL (Chen et al., ICCV 2019) and DFAD (Fang et al., 2019).

For images of S×S pixels and c = `channels` the layers are: linear to c×S/4×S/4, batch norm, upsampling ×2, convolution
to c channels, batch norm, leaky ReLU, upsampling ×2, convolution to c/2 channels, batch norm, leaky ReLU, convolution
to 3 channels, tanh, batch norm. The last batch norm has no weights, so each channel of a batch has mean 0 and variance
1, like normalised training images. The output is therefore a *normalised* image, as teacher and student expect. To view
it, compute `x * std + mean`.

The batch norms after the first two convolutions have the argument `eps`: 0.8 in the released code of DAFL, PyTorch's
default in that of DFAD. The first and the last batch norm have the default.
"""

import torch
from torch import nn

from model.network import at_least_float32
from utils.errors import UserError


def block(in_channels, out_channels, eps):
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels, eps),
        nn.LeakyReLU(0.2, inplace=True),
    )


class Generator(nn.Module):
    """Maps noise z, float (N, noise_size), to normalised images, float32 (N, 3, image_size, image_size).

    channels: output channels of the first convolution; the second has half as many. As in `Network`, `forward` enables
    bf16 autocast if `bf16` is true.
    """

    bf16 = False

    def __init__(self, image_size, noise_size, channels=128, eps=1e-5):
        super().__init__()
        if image_size % 4:
            raise UserError(f"the generator needs an image size that is divisible by 4, not {image_size}")
        self.shape = channels, image_size // 4, image_size // 4
        self.linear = nn.Linear(noise_size, channels * (image_size // 4) ** 2)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            block(channels, channels, eps),
            block(channels, channels // 2, eps),
            nn.Conv2d(channels // 2, 3, 3, padding=1),
            nn.Tanh(),
        )
        self.normalise = nn.BatchNorm2d(3, affine=False)

    def forward(self, noise):
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=self.bf16):
            start = self.linear(noise).unflatten(1, self.shape)
            images = self.layers(start.contiguous(memory_format=torch.channels_last))
        return self.normalise(at_least_float32(images))
