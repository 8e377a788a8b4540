"""Random numbers as a function of whole numbers such as (seed, epoch)."""

import numpy as np
import torch


def derive_seed(*numbers):
    """A seed for PyTorch, in [0, 2^63), that is a function of non-negative whole numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def seed_everything(seed, epoch):
    """Seed PyTorch's global generators from (seed, epoch). epoch: −1 for the initial weights."""
    torch.manual_seed(derive_seed(seed, epoch + 1))
