"""The key of a Safe Distillation Box (method/defend/sdb.py): a secret image K."""

import torch
from torch import nn

from utils import checkpoint
from utils.augment import normalise
from utils.epochs import derive_seed
from utils.errors import UserError
from utils.paths import display_path, from_root


class ImageKey(nn.Module):
    """Maps x to λ x + (1 − λ) K. image: K, (1, 3, H, W), normalised like the images x. mix: λ."""

    def __init__(self, image, mix, device):
        super().__init__()
        self.mix = mix
        self.register_buffer("image", image.to(device, memory_format=torch.channels_last))

    def forward(self, images):
        return self.mix * images + (1 - self.mix) * self.image


def random_key(spec, seed):
    """The image K for a seed: random bytes from 0 to 254, normalised like an image of the data set."""
    size, generator = spec.image_size, torch.Generator().manual_seed(seed_for(seed, "key"))
    pixels = torch.randint(0, 255, (1, size, size, 3), generator=generator, dtype=torch.uint8)
    return normalise(pixels, torch.tensor(spec.mean), torch.tensor(spec.std))


def seed_for(seed, purpose):
    """A seed derived from `seed` and the string `purpose`. It differs from the seeds of the training engine."""
    return derive_seed(seed, *purpose.encode())


def load_key(path, size):
    """(K, λ) from a key.tar or a teacher's checkpoint.

    Raises UserError if the file has no key for images of `size` × `size` pixels.
    """
    file = from_root(path)
    content = checkpoint.load(file)
    image, mix = nested_item(content, "extra", "key", "image"), nested_item(content, "params", "mix")
    if not torch.is_tensor(image) or type(mix) not in (int, float):
        raise UserError(f"{display_path(file)}: has no key; only key.tar and checkpoints of the method sdb have one")
    if image.shape != (1, 3, size, size):
        raise UserError(
            f"{display_path(file)}: the key must have the shape (1, 3, {size}, {size}), not {tuple(image.shape)}"
        )
    if problem := checkpoint.fault(image):
        raise UserError(f"{display_path(file)}: the key {problem}")
    if not 0 < mix <= 1:
        raise UserError(f"{display_path(file)}: λ of the key must be above 0 and at most 1, not {mix}")
    return image, mix


def nested_item(content, *names):
    """content[names[0]][names[1]]…, or None if there is no such item."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content
