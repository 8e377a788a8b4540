"""Reversed Maximize Learning, the "possessive teacher": Zhang et al., J. Frontiers of Computer Science and Technology
20(1), 2026 (preprint 2023).

The idea is published: reverse the sort order of the original network's logits, and separate the label from the other
classes by a binary probability. The equation is not public. This equation and its weights are OUR RECONSTRUCTION:

    min_f  CE(σ(f(x)), y) + β_t T² KL( b_A ‖ b ) + β_n T² KL( q_N ‖ p_N )

    f    the network trained              b, b_A  (P_y, 1 − P_y) of σ_T(f(x)), of σ_T(f_A(x)); P_y: probability of y
    f_A  the original network: normally   N       the classes other than the label y
         trained, then frozen             p_N     softmax over N of f(x)/T
    T    temperature                      q_N     softmax over N of z/T. z: f_A's logits of N in reversed order, so
    σ_T  softmax(·/T)                             the class with the lowest value gets the highest
    β_t  `beta_target`                    β_n     `beta_others`

If f_A is wrong on x, b_A contradicts the label, so x has no β_t term. Two variants of the last term are also ours. With
`order` "flat", q_N is uniform. With `order` "away", the term is − β_n T² KL( p_N ‖ softmax over N of f_A(x)/T ).
"""

from dataclasses import dataclass

import torch

from method import Method
from utils.keys import key
from utils.losses import cross_entropy, kl
from utils.metrics import accuracy, evaluate


def possessive_loss(logits, adversary_logits, labels, T, beta_target, beta_others, order="reversed"):
    """(loss, cross-entropy, T² KL of b, T² KL over N), four scalars. Both logits: (N, C). labels: (N,)."""
    ce = cross_entropy(logits, labels)
    wrong, b = split_wrong_classes(logits, labels, T)
    wrong_A, b_A = split_wrong_classes(adversary_logits, labels, T)
    correct = adversary_logits.argmax(1) == labels
    target = T**2 * (correct * (b_A.exp() * (b_A - b)).sum(1)).mean()
    if order == "away":
        others = -(T**2) * kl(wrong, wrong_A, T)
    else:
        goal = reverse(wrong_A) if order == "reversed" else torch.zeros_like(wrong_A)
        others = T**2 * kl(goal, wrong, T)
    return ce + beta_target * target + beta_others * others, ce, target, others


def split_wrong_classes(logits, labels, T):
    """(logits of the wrong classes (N, C − 1), log (P_y, 1 − P_y) of softmax(logits/T), (N, 2))."""
    classes = torch.arange(logits.shape[1] - 1, device=logits.device)
    wrong = logits.gather(1, classes + (classes >= labels[:, None]))
    both = torch.stack((logits.gather(1, labels[:, None])[:, 0] / T, (wrong / T).logsumexp(1)), 1)
    return wrong, both.log_softmax(1)


def reverse(logits):
    """Reverse the order of the values in each row: the class of the lowest value gets the highest, and so on."""
    values, indices = logits.sort(dim=1, descending=True, stable=True)
    return torch.empty_like(logits).scatter(1, indices, values.flip(1))


def rank_correlation(one, other):
    """Spearman's rank correlation of the rows of two matrices (N, M), averaged over rows."""
    a, b = ranks(one), ranks(other)
    return ((a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt().clamp_min(1)).mean()


def ranks(values):
    """The rank of each value in its row of (N, M), minus the mean rank, times 2. Equal values have equal ranks."""
    return ((values[:, :, None] > values[:, None]).sum(2) - (values[:, :, None] < values[:, None]).sum(2)).double()


class Possessive(Method):
    @dataclass
    class Params:
        adversarial_model: str = key("architecture of the original network, f_A")
        adversarial_resume: str = key("checkpoint of the original network: another experiment's best_model.tar")
        temperature: float = key("T, temperature of both KL divergences", above=0)
        beta_target: float = key("β_t, weight of the KL divergence of the label's probability", default=1.0, low=0)
        beta_others: float = key("β_n, weight of the KL divergence of the wrong classes", default=1.0, low=0)
        order: str = key(
            "distribution of the wrong classes. reversed: like the original logits in reversed order; away: unlike the "
            "original probabilities; flat: uniform",
            default="reversed",
            choices=("reversed", "away", "flat"),
        )

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        self.adversary = zoo.frozen(params.adversarial_model, params.adversarial_resume)

    def losses(self, images, labels):
        p = self.params
        settings = p.temperature, p.beta_target, p.beta_others, p.order
        terms = possessive_loss(self.model(images), self.adversary(images), labels, *settings)
        return dict(zip(("loss", "ce", "target", "others"), terms, strict=True))

    def evaluate(self, loader):
        return evaluate(self.model, loader, self.compare)

    def compare(self, images, labels, logits):
        original = self.adversary(images)
        wrong = (split_wrong_classes(z, labels, 1.0)[0] for z in (logits, original))
        return {"rank_correlation": rank_correlation(*wrong), "agreement": accuracy(logits, original.argmax(1))}
