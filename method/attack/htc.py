"""High temperature composition (HTC): Jandial et al., ECCV 2022.

    min_s  α KL( σ_T(t(x)) ‖ σ(s(x)) ) + (1 − α) CE(σ(s(x)), y)

s    the student, trained        T    temperature of the teacher only: 50 on CIFAR-10, 70 on CIFAR-100
t    the teacher, frozen         α    weight of the distillation term
y    the label                   σ_T  softmax(·/T); the student has temperature 1

A high temperature flattens the false peaks in the answers of a nasty teacher. Only the idea is published. The
temperatures and this form of the loss are OURS. The factor T² of kd.py is left out, because the student's gradient does
not shrink with T. At T = 50 the teacher's answer is nearly uniform. The loss is then close to cross-entropy with label
smoothing ε ≈ α; for α = 0.9, ε is about 0.89. So the tables of defences × attacks also have the accuracy of a control
experiment: a student without a teacher, trained with label smoothing 0.89.
"""

from method.attack.kd import KD
from utils.losses import cross_entropy, kl


def htc_loss(logits, teacher_logits, labels, T, alpha):
    """(loss, KL, cross-entropy), three scalars. Both logits: (N, C). labels: (N,)."""
    distillation, ce = kl(teacher_logits / T, logits), cross_entropy(logits, labels)
    return alpha * distillation + (1 - alpha) * ce, distillation, ce


class HTC(KD):
    def losses(self, images, labels):
        T, alpha = self.params.temperature, self.params.alpha
        loss, distillation, ce = htc_loss(self.model(images), self.teacher(images), labels, T, alpha)
        return {"loss": loss, "distillation": distillation, "ce": ce}
