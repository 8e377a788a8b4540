"""Image augmentation and normalisation on the device. The pixels equal those of torchvision on PIL images.

`sample_augmentation` returns random numbers, and `augment` takes them as arguments. images: uint8 (B, H, W, 3). The
random numbers have the distributions of torchvision's transforms:

    crop     RandomCrop(H, padding=4)       top, left uniform on 0 .. 8, border filled with zeros
    rotate   RandomRotation(20)             degrees uniform on [-20, 20], nearest neighbour, filled with zeros
    flip     RandomHorizontalFlip()         true with probability 1/2
"""

import torch
import torch.nn.functional as F

PADDING = 4  # pixels
MAX_DEGREES = 20.0


def sample_augmentation(names, count, generator):
    """Random numbers for `count` images: {argument of `augment`: tensor (count,)} on the generator's device.

    names: the augmentations, a subset of "crop", "rotate" and "flip".
    """
    options = {"generator": generator, "device": generator.device}
    numbers = {}
    if "crop" in names:
        numbers["top"] = torch.randint(2 * PADDING + 1, (count,), **options)
        numbers["left"] = torch.randint(2 * PADDING + 1, (count,), **options)
    if "rotate" in names:
        numbers["degrees"] = (torch.rand(count, **options) * 2 - 1) * MAX_DEGREES
    if "flip" in names:
        numbers["mirrored"] = torch.rand(count, **options) < 0.5
    return numbers


def augment(images, top=None, left=None, degrees=None, mirrored=None):
    """Crop, then rotate, then flip. Steps without arguments are skipped."""
    if top is not None:
        images = crop(images, top, left)
    if degrees is not None:
        images = rotate(images, degrees)
    if mirrored is not None:
        images = flip(images, mirrored)
    return images


def crop(images, top, left):
    """Pad each side with PADDING zeros and crop to the old size at row `top`, column `left`, int (B,)."""
    count, height, width, _ = images.shape
    padded = F.pad(images, (0, 0) + (PADDING,) * 4)
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[torch.arange(count, device=images.device), top, left]


def flip(images, mirrored):
    """Mirror left and right where `mirrored`, bool (B,), is true."""
    # index_select over whole images is twice as fast as torch.where over pixels.
    indices = torch.arange(len(images), device=images.device) + len(images) * mirrored
    return torch.cat((images, images.flip(2))).index_select(0, indices)


def rotate(images, degrees):
    """Rotate counter-clockwise about the centre by `degrees`, float (B,): nearest neighbour, zeros outside.

    Source coordinates are 16.16 fixed-point numbers as in Pillow, so that the same pixels are chosen.
    """
    count, height, width, channels = images.shape
    angle = torch.deg2rad(degrees.double())[:, None]
    cos, sin = angle.cos(), angle.sin()
    # The source of pixel (x, y) is (cos x - sin y, sin x + cos y), relative to the centre of the image. The coordinates
    # of a pixel are those of its centre, half a pixel from its corner.
    x, y = (1 - width) / 2, (1 - height) / 2
    origin_x = _fixed(cos * x - sin * y + width / 2)
    origin_y = _fixed(sin * x + cos * y + height / 2)
    row = torch.arange(height, device=images.device, dtype=torch.int32)
    column = torch.arange(width, device=images.device, dtype=torch.int32)
    source_x = (origin_x + _fixed(-sin) * row)[:, :, None] + (_fixed(cos) * column)[:, None, :] >> 16
    source_y = (origin_y + _fixed(cos) * row)[:, :, None] + (_fixed(sin) * column)[:, None, :] >> 16

    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    image = torch.arange(count, device=images.device, dtype=torch.int32)[:, None, None]
    source = ((image * height + source_y) * width + source_x) * inside
    pixels = images.reshape(-1, channels).index_select(0, source.flatten()) * inside.view(-1, 1)
    return pixels.view(images.shape)


def _fixed(number):
    return (number * 65536 + 0.5).floor().int()


def normalise(images, mean, std):
    """(images / 255 - mean) / std as ToTensor and Normalize compute it, to the last bit.

    mean, std: float32 (3,). Returns float32 (B, 3, H, W) in channels_last memory format.
    """
    count, height, width, channels = images.shape
    # `mean` and `std` are repeated to the length of an image, because a long inner loop is faster. 255 is a tensor
    # because CUDA replaces division by a Python number with multiplication by its rounded inverse.
    pixels = images.flatten(1).float()
    pixels /= torch.full((), 255.0, device=images.device)
    pixels -= mean.repeat(height * width)
    pixels /= std.repeat(height * width)
    return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)
