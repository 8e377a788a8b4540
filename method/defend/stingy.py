"""Stingy teacher: Ma et al., 2022. This is a release rule, which needs no training.

    t'(x)_k = t(x)_k  for the ⌊ρC⌋ classes k with the highest logits,  t'(x)_k = −∞  for the other classes

t  the teacher    C  number of classes    ρ  `rho`: 0.2 on CIFAR-10, 0.1 on CIFAR-100 and Tiny-ImageNet

The published students have T = 20 and α = 0.9 in the loss of kd.py.
"""

import math
from dataclasses import dataclass

import torch

from method.release import WITHHELD, Release
from utils.keys import key


def kept_classes(rho, num_classes):
    """⌊ρC⌋, the number of classes whose logits are released."""
    return math.floor(rho * num_classes + 1e-9)  # in floating point, 0.29 · 100 is 28.999999999999996


def sparse(logits, kept):
    """Keep the `kept` highest logits of each row (N, C), and replace the others by WITHHELD."""
    highest = logits.topk(kept, dim=1)
    return torch.full_like(logits, WITHHELD).scatter(1, highest.indices, highest.values)


class Stingy(Release):
    @dataclass
    class Params:
        rho: float = key("ρ, share of the classes whose logits are released", above=0, high=1)

        @staticmethod
        def problems(params, networks):
            classes = networks["teacher_model"].num_classes
            if kept_classes(params.rho, classes):
                return []
            return [f'"rho": {params.rho} of {classes} classes releases no logit']

    def __init__(self, teacher, params):
        super().__init__(teacher, params)
        self.kept = kept_classes(params.rho, teacher.num_classes)

    def answer(self, logits):
        return sparse(logits, self.kept)
