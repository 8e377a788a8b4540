"""Maximising angular deviation (MAD): Orekondy, Schiele and Fritz, "Prediction Poisoning", ICLR 2020.

This is a release rule, which needs no training.

    p* = argmax_v ‖ u(v) − u(p) ‖²,   u(p) = Gᵀp / ‖Gᵀp‖,   row k of G = − ∇_W log q_k = (q − e_k) ⊗ h
    p' = (1 − a) p + a p*,   a = min( 1, ε / ‖p − p*‖₁ ),   p = σ(t(x))

t  the teacher    r    a surrogate network with random weights, which are a function of the seed
x  the image      W    the weights of the last layer of r
σ  softmax        q    σ(r(x)), the probabilities of r
ε  `epsilon`      h    the features of x in r
C  number of      e_k  the one-hot vector of class k
   classes        v    a candidate for p*: the uniform distribution over a set of classes that contains the most
                       likely class of p; this class gets 1e-5 more

So Gᵀp = (q − p) ⊗ h, and h cancels in the distance of two unit vectors. For C ≤ 10 all 2^{C−1} sets are compared. For
more classes, the set grows greedily, as in the release: the class that increases the deviation most is added, with at
most 1024 comparisons. OURS: a probability of 0 is replaced by 1e-12. For attacks without data, the gradient of the rule
is replaced by that of the identity.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from method.image_key import seed_for
from method.release import Release, straight_through
from utils.keys import key

EXTRA, ALL_SETS, COMPARISONS = 1e-5, 10, 1024


def vertices(sets):
    """The vertices of sets of classes, probabilities (…, C). The first class is the most likely one.

    sets: (…, C), 1 for the classes in the set, else 0.
    """
    uniform = sets / sets.sum(-1, keepdim=True)
    uniform = torch.cat((uniform[..., :1] + EXTRA, uniform[..., 1:]), -1)
    return uniform / uniform.sum(-1, keepdim=True)


def deviation(v, p, q):
    """‖ u(v) − u(p) ‖² for v (N, M, C), p and q (N, C): (N, M)."""
    u_p, u_v = (F.normalize(q[:, None] - answer, dim=2) for answer in (p[:, None], v))
    return (u_v - u_p).square().sum(2)


def best_sets(p, q):
    """The sets (N, C) whose vertices have the largest deviation. p, q: (N, C); p is in descending order."""
    classes = p.shape[1]
    if classes <= ALL_SETS:
        numbers, bits = (torch.arange(count, device=p.device) for count in (2 ** (classes - 1), classes - 1))
        sets = F.pad((numbers[:, None] >> bits & 1).to(p.dtype), (1, 0), value=1.0)
        return sets[deviation(vertices(sets)[None], p, q).argmax(1)]
    sets = F.pad(torch.zeros_like(p[:, 1:]), (1, 0), value=1.0)
    one_more = torch.eye(classes, dtype=p.dtype, device=p.device)
    for _ in range(max(COMPARISONS // classes, 1)):
        grown = torch.maximum(sets[:, None], one_more)  # row 0 is the old set, which contains the first class already
        best = deviation(vertices(grown), p, q).argmax(1)
        sets = torch.maximum(sets, one_more[best])
    return sets


def mad(p, q, epsilon):
    """p' (N, C). p: probabilities of the teacher. q: probabilities of the surrogate. Both: (N, C)."""
    values, indices = p.sort(dim=1, descending=True, stable=True)
    best = torch.zeros_like(p).scatter(1, indices, vertices(best_sets(values, q.gather(1, indices))))
    distance = (best - p).abs().sum(1, keepdim=True)
    return p + (epsilon / distance.clamp_min(1e-12)).clamp_max(1) * (best - p)


class MAD(Release):
    @dataclass
    class Params:
        surrogate_model: str = key("architecture of the surrogate, which has random weights")
        epsilon: float = key("ε, largest L1 distance of an answer from the probabilities", default=1.0, low=0, high=2)

    def prepare(self, zoo):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_for(self.params.seed, "surrogate"))
            self.surrogate = zoo.freeze(zoo.fresh(self.params.surrogate_model))

    def respond(self, images, logits):
        with torch.no_grad():
            q = self.surrogate(images).double().softmax(1)
        return straight_through(logits, lambda p: mad(p, q, self.params.epsilon))
