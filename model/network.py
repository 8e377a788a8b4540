"""The base of every classifier."""

import torch
from torch import nn


class Network(nn.Module):
    """An image classifier: `forward(images)` is `head(features(images))`.

    images: float (N, 3, H, W). features: (N, F), pooled, before the classifier. logits: (N, num_classes).
    `features` and `head` compute in the surrounding precision. `forward` sets it, bf16 autocast where `bf16`
    is true, and returns at least float32, so that losses never see half precision.
    """

    bf16 = False

    def features(self, images):
        raise NotImplementedError

    def head(self, features):
        raise NotImplementedError

    def forward(self, images, with_features=False):
        """Logits; with `with_features`, (features, logits) from the same pass."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.features(images)
            logits = self.head(features)
        logits = at_least_float32(logits)
        return (at_least_float32(features), logits) if with_features else logits


def at_least_float32(tensor):
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
