"""ModelGuard-W: Tang et al., "ModelGuard: Information-Theoretic Defense Against Model Extraction Attacks", USENIX
Security 2024. This is a release rule, which needs no training.

    min_{p'} Σ_k log(p_k + 1e-6) p'_k   s.t.  p' on the simplex,  ‖p' − p‖₁ ≤ ε,  p'_top − p'_k ≥ 1e-4 for k ≠ top

p  σ(t(x)), of the teacher t      top  argmax p, the first of equal classes      ε  `epsilon`, at most 2

The released code solves this linear program for one query at a time. Here it is solved for a batch of queries. For a
fixed p'_top the optimum moves probability from the most to the least likely of the other classes (`fill`). The optimal
cost is convex in p'_top, so golden-section search finds p'_top. OURS: a probability of 0 is replaced by 1e-12. For
attacks without data, the gradient of the rule is replaced by that of the identity, because the gradient of a linear
program is 0 almost everywhere.
"""

from dataclasses import dataclass

import torch

from method.release import Release, straight_through
from utils.keys import key

MARGIN, OFFSET = 1e-4, 1e-6
GOLDEN, STEPS, PENALTY = (5**0.5 - 1) / 2, 48, 1e4  # after the search, the interval has the length 0.618⁴⁸ = 1e-10


def fill(top, others, h, epsilon):
    """The optimum for p'_top = h (N, 1). Returns (p' of the other classes (N, C − 1), max(‖p' − p‖₁ − ε, 0) (N, 1)).

    top: p_top (N, 1). others: p of the other classes, in ascending order (N, C − 1). First the other classes are
    changed until each is at most h − 1e-4 and their sum is 1 − h. If this uses less than ε, probability is then moved
    from the most likely to the least likely of the other classes.
    """
    cap, classes = h - MARGIN, torch.arange(others.shape[1], device=others.device)
    x = others.minimum(cap)
    excess = x.sum(1, keepdim=True) + h - 1
    best = torch.minimum((1 - h - cap * classes).clamp_min(0), cap)  # the optimum without the limit ε
    donors, receivers = (x - best).clamp_min(0), (best - x).clamp_min(0)
    spent = (h - top).abs() + (others - x).sum(1, keepdim=True) + excess.abs()
    removed = excess.clamp_min(0) + (epsilon - spent).clamp_min(0) / 2
    removed = removed.minimum(donors.sum(1, keepdim=True))
    x = x + (removed - excess - receivers.cumsum(1) + receivers).clamp_min(0).minimum(receivers)
    after = donors.sum(1, keepdim=True) - donors.cumsum(1)
    return x - (removed - after).clamp_min(0).minimum(donors), (spent - epsilon).clamp_min(0)


def modelguard(p, epsilon):
    """p' (N, C) for probabilities p (N, C), in the precision of p. float64 is recommended."""
    # In ascending order. Of equal values, the first is placed last, so that it becomes the top, as in argmax.
    values, indices = (part.flip(1) for part in p.sort(dim=1, descending=True, stable=True))
    others, top = values[:, :-1], values[:, -1:]
    costs = (values + OFFSET).log()

    def cost(h):
        rest, beyond = fill(top, others, h, epsilon)
        return (rest * costs[:, :-1]).sum(1, keepdim=True) + h * costs[:, -1:] + PENALTY * beyond

    count = p.shape[1]
    low, high = torch.full_like(top, (1 + (count - 1) * MARGIN) / count), torch.ones_like(top)
    for _ in range(STEPS):
        step = GOLDEN * (high - low)
        left, right = high - step, low + step
        falls = cost(left) > cost(right)
        low, high = torch.where(falls, left, low), torch.where(falls, high, right)
    h = (low + high) / 2
    return torch.zeros_like(p).scatter(1, indices, torch.cat((fill(top, others, h, epsilon)[0], h), 1))


class ModelGuard(Release):
    @dataclass
    class Params:
        epsilon: float = key("ε, largest L1 distance of an answer from the probabilities", default=1.0, low=0, high=2)

    def answer(self, logits):
        return straight_through(logits, lambda p: modelguard(p, self.params.epsilon))
