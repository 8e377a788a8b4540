"""Label-only extraction: the student learns the teacher's top-1 classes. This is the attack of Papernot et al., 2017,
and the Top-1 attack of Tang et al. (ModelGuard), USENIX Security 2024.

    c(x) = argmax_k t(x)_k
    min_s  CE( σ(s(x)), (1 − ε) onehot(c(x)) + ε/C )

s  the student, trained        ε  `label_smoothing`
t  the teacher, frozen         C  number of classes        σ  softmax

The true labels are not used for training. A defence that never changes the most likely class does not change the
student.
"""

from dataclasses import dataclass

from method.attack import Attack
from utils.keys import key
from utils.losses import cross_entropy


def hard_label_loss(logits, teacher_logits, epsilon):
    """(loss, the teacher's top-1 classes (N,)). Both logits: (N, C)."""
    answers = teacher_logits.argmax(1)
    return cross_entropy(logits, answers, epsilon), answers


class HardLabel(Attack):
    @dataclass
    class Params(Attack.Params):
        label_smoothing: float = key(
            "ε, share of the target probability that is spread evenly over all classes",
            default=0.0,
            low=0,
            below=1,
            search=(0, 0.1, 0.3, 0.6),
        )

    def losses(self, images, labels):
        loss, answers = hard_label_loss(self.model(images), self.teacher(images), self.params.label_smoothing)
        return {"loss": loss, "acc_answers": 100 * (answers == labels).float().mean()}
