"""Knowledge distillation: Hinton et al., 2015, in the form of equation 1 of Ma et al., ICLR 2021.

min_s  α T² KL( σ_T(t(x)) ‖ σ_T(s(x)) ) + (1 − α) CE(σ(s(x)), y)

s    the student, trained        σ_T  softmax(·/T)
t    the teacher, frozen         T    temperature
y    the label                   α    weight of the distillation term
"""

from dataclasses import dataclass

from method.attack import Attack
from utils.keys import key
from utils.losses import cross_entropy, kl


def kd_loss(logits, teacher_logits, labels, T, alpha):
    """Equation 1: (loss, T² KL, cross-entropy), three scalars. Both logits: (N, C). labels: (N,)."""
    distillation = T**2 * kl(teacher_logits, logits, T)
    ce = cross_entropy(logits, labels)
    return alpha * distillation + (1 - alpha) * ce, distillation, ce


class KD(Attack):
    @dataclass
    class Params(Attack.Params):
        temperature: float = key(
            "T, the paper's τ_s: temperature of teacher and student (htc: of the teacher only)",
            above=0,
            search=(1, 2, 4, 8, 20, 50),
        )
        alpha: float = key(
            "α, weight of the distillation term; the weight of the cross-entropy with the labels is 1 − α",
            low=0,
            high=1,
            search=(0, 0.1, 0.3, 0.5, 0.7, 0.9, 1),
        )

    def losses(self, images, labels):
        T, alpha = self.params.temperature, self.params.alpha
        loss, distillation, ce = kd_loss(self.model(images), self.teacher(images), labels, T, alpha)
        return {"loss": loss, "distillation": distillation, "ce": ce}
