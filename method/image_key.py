"""The key of a Safe Distillation Box (method/defend/sdb.py), an image: drawn, laid over queries, read from files."""

import torch
from torch import nn

from utils import checkpoint
from utils.augment import normalise
from utils.data import DATASETS
from utils.engine import derived_seed
from utils.errors import UserError


class ImageKey(nn.Module):
    """x -> λ x + (1 − λ) K. image: K, (1, 3, H, W), normalised as the images x are. mix: λ."""

    def __init__(self, image, mix, device):
        super().__init__()
        self.mix = mix
        self.register_buffer("image", image.to(device, memory_format=torch.channels_last))

    def forward(self, images):
        return self.mix * images + (1 - self.mix) * self.image


def draw(spec, seed):
    """The K of a seed, an image of random bytes from 0 to 254."""
    size, generator = spec.image_size, torch.Generator().manual_seed(derived(seed, "key"))
    pixels = torch.randint(0, 255, (1, size, size, 3), generator=generator, dtype=torch.uint8)
    return normalise(pixels, torch.tensor(spec.mean), torch.tensor(spec.std))


def derived(seed, purpose):
    """Another seed, a function of both; not one that the engine draws from."""
    return derived_seed(seed, *purpose.encode())


def read(path, dataset):
    """(K, λ) in a key.tar or a teacher's checkpoint. UserError: there is no key, or it does not fit the data set."""
    file, size = checkpoint.locate(path), DATASETS[dataset].image_size
    content = checkpoint.read(file)
    image, mix = inside(content, "extra", "key", "image"), inside(content, "params", "mix")
    if not torch.is_tensor(image) or type(mix) not in (int, float):
        raise UserError(f"{checkpoint.shown(file)}: holds no key; only teachers of the method sdb have one")
    if image.shape != (1, 3, size, size):
        raise UserError(f"{checkpoint.shown(file)}: a key of shape {tuple(image.shape)}, not (1, 3, {size}, {size})")
    if not 0 < mix <= 1:
        raise UserError(f"{checkpoint.shown(file)}: a key with λ = {mix}, which must be at most 1 and above 0")
    return image, mix


def inside(content, *names):
    """What nested dictionaries hold at the end of these names, or None."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content
