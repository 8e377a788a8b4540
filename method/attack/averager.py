"""Averager student, 2023: knowledge distillation from what the teacher says of a class on average.

    t̄(x_i) = mean of t(x_j) over the images j of the batch with y_j = y_i
    min_s  α T² KL( σ_T(t̄(x)) ‖ σ_T(s(x)) ) + (1 − α) CE(σ(s(x)), y)

s    the student, trained        σ_T  softmax(·/T)
t    the teacher, frozen         T    temperature
y    the label                   α    share of the teacher

A nasty teacher's false peaks differ from image to image, and cancel. The mean is as released; that the loss around it
is kd.py's is OUR reading, and that the mean of a logit is over the images for which the teacher released it.
"""

import torch.nn.functional as F

from method.attack.kd import KD, kd_loss
from method.release import WITHHELD


def class_means(logits, labels):
    """Each row of logits (N, C) replaced by the mean of the rows with the same of the labels (N,).

    What no row of a label has stays withheld.
    """
    members = F.one_hot(labels, logits.shape[1]).to(logits.dtype)  # a product with it is exact and deterministic
    released = (logits > WITHHELD).to(logits.dtype)
    images = members.T @ released
    means = (members.T @ (logits * released) / images.clamp_min(1)).where(images > 0, WITHHELD)
    return means[labels]


class Averager(KD):
    def losses(self, images, labels):
        T, alpha = self.params.temperature, self.params.alpha
        means = class_means(self.teacher(images), labels)
        loss, distillation, ce = kd_loss(self.model(images), means, labels, T, alpha)
        return {"loss": loss, "distillation": distillation, "ce": ce}
