"""Splits of a data set, held as uint8, and loaders that assemble batches on the device.

A batch is (images, labels): images float32 (B, 3, H, W), normalised, in channels_last memory format; labels int64 (B,).
"""

from dataclasses import dataclass

import numpy as np
import torch

from utils.augment import augment, normalise, sample_augmentation


@dataclass(frozen=True)
class Split:
    """A part of a data set: all of `images`, or the images with the indices `rows`.

    If `rows` is given, `images` may be memory-mapped, and may be on another device than the batches.
    """

    images: torch.Tensor  # uint8 (N, H, W, 3)
    labels: torch.Tensor  # int64 (n,), on the device of the batches
    rows: torch.Tensor | None = None  # int64 (n,), on the device of `images`; None: n = N, in the order of `images`

    def __len__(self):
        return len(self.labels)

    def take(self, index):
        """The images with the indices `index`, int64 (B,), in the split: uint8 (B, H, W, 3) on the labels' device."""
        if self.rows is None:
            return self.images.index_select(0, index)
        return self.images.index_select(0, self.rows[index.to(self.rows.device)]).to(self.labels.device)


class Loader:
    """Batches of a split: every image once per epoch. The last batch may be smaller.

    Order and augmentation depend on (seed, epoch, role) only and are the same on every device. With several processes,
    process `rank` receives every `world_size`-th image of each batch.

    split: a Split. spec: a DataSpec with the mean and the standard deviation. augmentation: see `sample_augmentation`.
    prefetch: number of batches that are assembled at once. It does not change the batches. role: loaders with the same
    seed and different roles have different orders and augmentations.
    """

    def __init__(
        self, split, spec, batch_size, augmentation=(), shuffle=False, seed=0, rank=0, world_size=1, prefetch=1, role=0
    ):
        self.split, self.batch_size = split, batch_size
        self.augmentation, self.shuffle = augmentation, shuffle
        self.seed, self.role, self.epoch = seed, role, 0
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.mean = torch.tensor(spec.mean, device=split.labels.device)
        self.std = torch.tensor(spec.std, device=split.labels.device)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return -(-len(self.split) // self.batch_size)

    def __iter__(self):
        order, augmentation = self.sample_epoch()
        positions = torch.arange(len(self.split), device=order.device)
        shares = [batch[self.rank :: self.world_size] for batch in positions.split(self.batch_size)]
        for first in range(0, len(shares), self.prefetch):
            group = shares[first : first + self.prefetch]
            chosen = torch.cat(group)
            images, labels = self.assemble(
                order[chosen], {name: values[chosen] for name, values in augmentation.items()}
            )
            sizes = [len(share) for share in group]
            yield from zip(images.split(sizes), labels.split(sizes), strict=True)

    def sample_epoch(self):
        """(order, augmentation): the indices of the images, int64 (n,), and for each image the arguments of `augment`.

        Both are sampled on the CPU, so that they do not depend on the device.
        """
        count, device = len(self.split), self.split.labels.device
        # SeedSequence mixes the numbers: epoch 1 of seed 0 must differ from epoch 0 of seed 1.
        state = np.random.SeedSequence((self.seed, self.epoch, self.role)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        augmentation = sample_augmentation(self.augmentation, count, generator)
        return order.to(device), {name: values.to(device) for name, values in augmentation.items()}

    def assemble(self, index, augmentation):
        """The batch (images, labels) with the indices `index`, int64 (B,). augmentation: arguments of `augment`."""
        images = augment(self.split.take(index), **augmentation)
        return normalise(images, self.mean, self.std), self.split.labels.index_select(0, index)


def copied_split(images, labels, device, rows):
    """A Split of `images[rows]` on `device`. rows: int (n,). On the CPU, a Split of all images shares their memory."""
    if not np.array_equal(rows, np.arange(len(images))):
        images, labels = images[rows], np.asarray(labels)[rows]
    images = torch.from_numpy(np.ascontiguousarray(images))
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    return Split(images.to(device), labels.to(device))


def mapped_split(images, labels, device, rows):
    """A Split of `images[rows]` that does not copy `images`, which may be memory-mapped. rows: int (n,).

    The array is copied to a GPU only if it takes at most half of the free memory.
    """
    images, rows = torch.from_numpy(images), torch.from_numpy(rows)
    if torch.device(device).type == "cuda" and fits(images.nbytes, device):
        images, rows = images.to(device), rows.to(device)
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return Split(images, labels[rows.cpu()].to(device), rows)


def fits(size, device):
    """Whether `size` bytes take at most half of the free memory of a GPU."""
    return size <= torch.cuda.mem_get_info(device)[0] / 2
