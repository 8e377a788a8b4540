"""Means of logged quantities over images, and accuracy."""

import numpy as np
import torch
import torch.nn.functional as F

from utils import distributed
from utils.errors import Diverged


class Means:
    """Means of named scalars over images. Sums stay on the device, so that `add` does not wait for the device."""

    def __init__(self):
        self.names, self.sums, self.images = None, 0, 0  # sums: double (number of names,)

    def add(self, terms, images):
        """Add {name: scalar without a gradient, the mean over `images` images}, with the same names in every call."""
        assert self.names in (None, list(terms)), f"{list(terms)} after {self.names}"
        self.names = list(terms)
        self.sums = self.sums + torch.stack(list(terms.values())).double() * images  # one vector: fewer kernels
        self.images += images

    def values(self):
        """{name: mean} as floats. Waits for the device. Raises Diverged if a mean is not finite."""
        totals = self.sums.tolist()
        values = {name: total / self.images for name, total in zip(self.names, totals, strict=True)}
        if not np.isfinite(totals).all():
            raise Diverged(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return values

    def over_processes(self):
        """New Means over the images of all processes."""
        totals = distributed.sum_over_processes(torch.cat((self.sums, self.sums.new_tensor([self.images]))))
        everywhere = Means()
        everywhere.names, everywhere.sums, everywhere.images = self.names, totals[:-1], int(totals[-1])
        return everywhere


def accuracy(logits, labels):
    """Percentage of images whose highest logit is that of the label. logits (N, C), labels (N,)."""
    return 100 * (logits.argmax(1) == labels).double().mean()


@torch.no_grad()
def evaluate(network, loader, more=None):
    """{"acc": accuracy in percent, "loss": mean cross-entropy} of `network` over the images of `loader`.

    more: a function of (images, labels, logits) that returns {name: mean over these images}. These terms are averaged
    as well; a term called "acc" or "loss" replaces the one above. The network stays in eval mode.
    """
    network.eval()
    means = Means()
    for images, labels in loader:
        logits = network(images)
        terms = {"acc": accuracy(logits, labels), "loss": F.cross_entropy(logits, labels)}
        means.add(terms | (more(images, labels, logits) if more else {}), len(images))
    return means.values()
