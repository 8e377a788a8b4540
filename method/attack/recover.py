"""Recovery of perturbed answers, the partial Bayes attack: Tang et al. (ModelGuard), USENIX Security 2024.

    p_i ~ Dirichlet( c C · q̂ ),   p'_i = D(p_i),   i = 1 … `samples`              the table of an answer q
    r(q) = mean of the p_i with argmax p'_i = argmax q and ‖p'_i − q‖₁ ≤ max( 0.01, smallest distance )
    min_s  α T² KL( r(q)^(1/T) ‖ σ_T(s(x)) ) + (1 − α) CE(σ(s(x)), y),   q = σ(t'(x))

s   the student, trained                D  the release rule, which the attacker knows with its parameters
t'  the teacher with its release rule   q̂  the `prior`: q, or the student's σ(s(x)); an attacker has both
T   temperature                         C  number of classes
α   weight of the distillation term     c  `concentration`
y   the label                           σ  softmax;  σ_T  softmax(·/T)

r(q) estimates the unperturbed answer. r(q)^(1/T) is normalised to the sum 1. D is `Release.answer` of the rule, so the
attack works against any rule that is a function of the logits. The released code samples one table around the
*unperturbed* answers, which an attacker does not have. OURS: the choice between two priors; a small table for each
image, which is sampled again in each step; Dirichlet parameters of at least 1e-3; and q as an additional row of the
table, so that r(q) is close to q if the rule changes nothing.
"""

from dataclasses import dataclass

import torch
from torch.distributions import Gamma

from method.attack.kd import KD, kd_loss
from method.release import SMALLEST
from utils.keys import key

NEAR = 0.01


def recover(q, table, answers):
    """r(q), probabilities (N, C), for answers q (N, C).

    table: p_i. answers: p'_i. Both: (N, samples, C). If no p'_i of an image has the same most likely class as q, only
    the distances are used.
    """
    same = answers.argmax(2) == q.argmax(1, keepdim=True)
    same = same | ~same.any(1, keepdim=True)
    distances = (answers - q[:, None]).abs().sum(2).masked_fill(~same, torch.inf)
    weights = (distances <= distances.amin(1, keepdim=True).clamp_min(NEAR)).to(q.dtype)
    return (weights[:, None] @ table)[:, 0] / weights.sum(1, keepdim=True)


class Recover(KD):
    @dataclass
    class Params(KD.Params):
        samples: int = key("number of random rows in the table of an answer", default=256, low=1)
        concentration: float = key("c, concentration of the Dirichlet distribution of the rows", default=8.0, above=0)
        prior: str = key(
            "mean of the rows: the teacher's answers or the student's output",
            default="answers",
            choices=("answers", "student"),
        )

    def losses(self, images, labels):
        T, alpha, logits = self.params.temperature, self.params.alpha, self.model(images)
        with torch.no_grad():
            q = self.teacher(images).softmax(1)
            table = self.table(q, q if self.params.prior == "answers" else logits.softmax(1))
            answers = self.teacher.answer(table.flatten(0, 1).log()).softmax(1).view_as(table)
            recovered = recover(q, table, answers)
        loss, distillation, ce = kd_loss(logits, recovered.clamp_min(SMALLEST).log(), labels, T, alpha)
        moved = (recovered - q).abs().sum(1).mean()
        return {"loss": loss, "distillation": distillation, "ce": ce, "moved": moved}

    def table(self, q, prior):
        """The table (N, 1 + samples, C): q, and samples around `prior`. q, prior: (N, C)."""
        concentrations = (self.params.concentration * q.shape[1] * prior).clamp_min(1e-3)
        gamma = Gamma(concentrations, torch.ones_like(concentrations), validate_args=False)
        samples = gamma.sample((self.params.samples,))
        samples = samples / samples.sum(2, keepdim=True)  # normalised Gamma samples have a Dirichlet distribution
        return torch.cat((q[None], samples)).movedim(0, 1).clamp_min(SMALLEST)
