"""Reverse sigmoid: Lee et al., 2019 ("Defending against neural network model stealing attacks using deceptive
perturbations"). This is a release rule, which needs no training.

    p'_k ∝ p_k − β ( S(γ S⁻¹(p_k)) − ½ ),   p = σ(t(x))

t  the teacher        S  logistic function        β  `beta`: 0.21 on CIFAR-10, 0.02 on CIFAR-100
σ  softmax            S⁻¹ its inverse             γ  `sharpness`: 0.2

The equation and the values are those of the released code of ModelGuard (Tang et al., USENIX Security 2024), which does
not clip p'. For β ≤ 1, p' is positive. For small p, p' decreases with p, so the order of unlikely classes is reversed.
The most likely class may change if β is large or if all probabilities are small. OURS: inside S⁻¹, p is clipped to
[1e-6, 1 − 1e-6].
"""

from dataclasses import dataclass

import torch

from method.release import Release
from utils.keys import key

CLIP = 1e-6


def reverse_sigmoid(logits, beta, gamma):
    """log p' (N, C) for the logits t(x) (N, C)."""
    p = logits.softmax(1)
    perturbed = p - beta * (torch.sigmoid(gamma * torch.logit(p, CLIP)) - 0.5)
    return (perturbed / perturbed.sum(1, keepdim=True)).log()


class ReverseSigmoid(Release):
    @dataclass
    class Params:
        beta: float = key("β, size of the perturbation", default=0.21, above=0, high=1)
        sharpness: float = key("γ, factor of the inverse sigmoid S⁻¹(p)", default=0.2, above=0, high=1)

    def answer(self, logits):
        return reverse_sigmoid(logits, self.params.beta, self.params.sharpness)
