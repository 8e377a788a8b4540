"""Logit standardisation in knowledge distillation: Sun et al., CVPR 2024.

    Z(z) = (z − mean z) / (1e-7 + std z)                          per image, over its classes
    min_s  λ α T² KL( σ_T(Z(t(x))) ‖ σ_T(Z(s(x))) ) + (1 − α) CE(σ(s(x)), y)

s    the student, trained        σ_T  softmax(·/T)        α  share of the teacher
t    the teacher, frozen         T    temperature         λ  `strength`
y    the label                   std  with C − 1 in the denominator

Z undoes any affine change of an image's logits. The released weights, 9 and 0.1 at T = 2, are λ = 10, α = 0.9.
Ours: logits that the teacher withholds stay withheld, and do not enter the mean and deviation of its logits.
"""

from dataclasses import dataclass

from method.attack.kd import KD
from method.release import WITHHELD
from utils.keys import key
from utils.losses import cross_entropy, kl

EPSILON = 1e-7


def standardise(logits):
    """Z of each row of logits (N, C). WITHHELD entries are returned as they are."""
    released = logits > WITHHELD
    count = released.sum(1, keepdim=True)
    mean = logits.masked_fill(~released, 0.0).sum(1, keepdim=True) / count
    centred = (logits - mean).masked_fill(~released, 0.0)
    variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)
    # The floor keeps the gradient of the square root finite if all logits are equal.
    return (centred / (EPSILON + variance.clamp_min(EPSILON**4).sqrt())).masked_fill(~released, WITHHELD)


def logit_std_loss(logits, teacher_logits, labels, T, alpha, strength):
    """(loss, T² KL of the standardised logits, cross-entropy), from two sets of logits (N, C) and labels (N,)."""
    distillation = T**2 * kl(standardise(teacher_logits), standardise(logits), T)
    ce = cross_entropy(logits, labels)
    return strength * alpha * distillation + (1 - alpha) * ce, distillation, ce


class LogitStd(KD):
    @dataclass
    class Params(KD.Params):
        strength: float = key("λ, factor of the distillation term", default=10.0, low=0, search=(1, 3, 10))

    def losses(self, images, labels):
        p = self.params
        logits, teacher_logits = self.model(images), self.teacher(images)
        terms = logit_std_loss(logits, teacher_logits, labels, p.temperature, p.alpha, p.strength)
        return dict(zip(("loss", "distillation", "ce"), terms, strict=True))
