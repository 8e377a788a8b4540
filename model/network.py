"""The base class of all classifiers."""

import torch
from torch import nn


class Network(nn.Module):
    """An image classifier. `forward(images)` computes `head(features(images))`.

    images: float (N, 3, H, W). features: (N, F), pooled, before the classifier. logits: (N, num_classes).
    `forward` enables bf16 autocast if `bf16` is true, and returns float32, so that losses are computed in float32.
    `features` and `head` do not change the precision.
    """

    bf16 = False

    def features(self, images):
        raise NotImplementedError

    def head(self, features):
        raise NotImplementedError

    def forward(self, images, with_features=False):
        """Return logits, or (features, logits) if `with_features` is true."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.features(images)
            logits = self.head(features)
        logits = at_least_float32(logits)
        return (at_least_float32(features), logits) if with_features else logits


def at_least_float32(tensor):
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
