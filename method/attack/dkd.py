"""Decoupled knowledge distillation (DKD): Zhao et al., CVPR 2022.

    min_s  CE(σ(s(x)), y) + w T² [ β_t KL( b_t ‖ b_s ) + β_n KL( n_t ‖ n_s ) ],   w = min(epoch / `warm_up`, 1)

s      the student, trained                      β_t  `beta_target`, the paper's α
t      the teacher, frozen                       β_n  `beta_others`, the paper's β: from 2 to 8
b_t    (P_y, 1 − P_y) of σ_T(t(x)); b_s: of s    P_y  probability of the label y
n_t    softmax over all classes k ≠ y            T    temperature;  σ_T  softmax(·/T)
       of t(x)_k / T; n_s: of s                  w    weight that rises to 1; epochs are counted from 1

In plain distillation β_n is 1 − P_y of the teacher. So the wrong classes have little weight if the teacher is
confident. If `standardise` is true, the logits in both KL divergences are standardised first (see logit_std.py). The
logits in the cross-entropy are not. OURS: classes whose logits the teacher withholds are left out of n_t and n_s.
"""

from dataclasses import dataclass

import torch

from method.attack import Attack
from method.attack.logit_std import standardise
from method.defend.possessive import split_wrong_classes
from method.release import WITHHELD
from utils.keys import key
from utils.losses import cross_entropy, kl


def dkd_loss(logits, teacher_logits, labels, T, beta_target, beta_others, standardised=False):
    """(distillation, T² KL of b, T² KL of n, cross-entropy), four scalars. Both logits: (N, C). labels: (N,).

    distillation: the sum of the two KL divergences with T² and their weights, for w = 1.
    """
    ce = cross_entropy(logits, labels)
    if standardised:
        logits, teacher_logits = standardise(logits), standardise(teacher_logits)
    n_s, b_s = split_wrong_classes(logits, labels, T)  # n: logits, without T; b: log-probabilities at T
    n_t, b_t = split_wrong_classes(teacher_logits, labels, T)
    target = T**2 * kl(b_t, b_s)
    others = T**2 * kl(n_t, n_s.masked_fill(n_t <= WITHHELD, WITHHELD), T)
    return beta_target * target + beta_others * others, target, others, ce


class DKD(Attack):
    @dataclass
    class Params(Attack.Params):
        temperature: float = key("T, temperature of both KL divergences", above=0, search=(1, 2, 4, 8))
        beta_target: float = key("β_t, weight of the KL divergence of the label's probability", default=1.0, low=0)
        beta_others: float = key(
            "β_n, weight of the KL divergence of the wrong classes", default=8.0, low=0, search=(0.5, 2, 8)
        )
        warm_up: int = key(
            "number of epochs in which w, the weight of both KL divergences, rises to 1; 0: w is always 1",
            default=20,
            low=0,
        )
        standardise: bool = key(
            "standardise the logits of teacher and student, as logit_std does", default=False, search=(False, True)
        )

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        # The weight w. It is changed in place, because a recorded CUDA graph reads this tensor.
        self.weight = torch.ones((), device=zoo.device)

    def batches(self, loader):
        self.weight.fill_(min((loader.epoch + 1) / max(self.params.warm_up, 1), 1.0))
        return loader

    def losses(self, images, labels):
        p = self.params
        settings = p.temperature, p.beta_target, p.beta_others, p.standardise
        distillation, target, others, ce = dkd_loss(self.model(images), self.teacher(images), labels, *settings)
        return {"loss": ce + self.weight * distillation, "target": target, "others": others, "ce": ce}
