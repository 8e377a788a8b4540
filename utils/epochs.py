"""The learning rate and the random seed of an epoch."""

import numpy as np
import torch


def get_lr(learning_rate, schedule, gamma, epoch):
    """The learning rate of `epoch`, counted from 0, as in the released code.

    It is `learning_rate`, multiplied by `gamma` at the start of each epoch in `schedule`.
    """
    for milestone in schedule:
        if milestone <= epoch:
            learning_rate *= gamma
    return learning_rate


def derive_seed(*numbers):
    """A seed for PyTorch, in [0, 2^63), derived from non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def seed_everything(seed, epoch):
    """Seed PyTorch's global generators from (seed, epoch). epoch: −1 for the initial weights."""
    torch.manual_seed(derive_seed(seed, epoch + 1))
