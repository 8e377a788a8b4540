"""Logit standardisation in knowledge distillation: Sun et al., CVPR 2024.

    Z(z) = (z − mean z) / (1e-7 + std z)                          per image, over its classes
    min_s  λ α T² KL( σ_T(Z(t(x))) ‖ σ_T(Z(s(x))) ) + (1 − α) CE(σ(s(x)), y)

s    the student, trained        σ_T  softmax(·/T)        α  weight of the distillation term
t    the teacher, frozen         T    temperature         λ  `strength`
y    the label                   std  unbiased standard deviation

Z does not change if the logits of an image are shifted, or multiplied by a positive number. λ = 10 and α = 0.9 give the
released weights at T = 2: 9 for T² KL and 0.1 for the cross-entropy. OURS: logits that the teacher withholds stay
withheld, and are left out of the mean and the standard deviation.
"""

from dataclasses import dataclass

from method.attack.kd import KD
from method.release import WITHHELD
from utils.keys import key
from utils.losses import cross_entropy, kl

EPSILON = 1e-7


def standardise(logits):
    """Z of each row of logits (N, C). WITHHELD values stay WITHHELD."""
    released = logits > WITHHELD
    count = released.sum(1, keepdim=True)
    mean = logits.masked_fill(~released, 0.0).sum(1, keepdim=True) / count
    centred = (logits - mean).masked_fill(~released, 0.0)
    variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)
    # The floor keeps the gradient of the square root finite if all logits are equal.
    return (centred / (EPSILON + variance.clamp_min(EPSILON**4).sqrt())).masked_fill(~released, WITHHELD)


def logit_std_loss(logits, teacher_logits, labels, T, alpha, strength):
    """(loss, T² KL of standardised logits, cross-entropy), three scalars. Both logits: (N, C). labels: (N,)."""
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
