"""MKD, Markov knowledge distillation: Yang and Ye, ECCV 2024. There is no released code of MKD.

    p_T = softmax( t(x) / T )                                            the power transform
    M_c = softmax over each row of ( a_c I + U_c V_cᵀ )                  the Markov matrix of class c
    p̃   = p_T M_y                                                        the target: p_T times the matrix of the label
    min_s        α T² KL( sg[p̃] ‖ σ_T(s(x)) ) + (1 − α) CE(σ(s(x)), y)
    min_{a,U,V}  α T² KL( p̃ ‖ sg[σ_T(s(x))] )                            in the same iteration

s  the student, trained        a_c, U_c, V_c  trained: a scalar, and two C×n matrices; n is `rank`
t  the teacher, frozen         α              weight of the distillation term
y  the label                   σ_T            softmax(·/T)
T  temperature                 sg             stops the gradient
C  number of classes           I              identity matrix

The matrices have their own Adam optimizer. `diagonal` selects the initial values. If `diagonal` is null, the initial
values are those in the code that the same group released for its paper CMIM: a_c = 1, and U and V are sampled from a
uniform distribution. M_c is then nearly uniform. If `diagonal` is a number β, a_c = log(β (C − 1) / (1 − β)) and V =
0, so the diagonal of M_c is β. OURS: the learning rate of the matrices is constant, and each row of M_c is normalised.
The CMIM code normalises the columns, so that M_c is not a Markov kernel.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from method.attack.kd import KD
from utils import distributed
from utils.keys import key
from utils.losses import cross_entropy, kl

# Lower bound of log p_T in the metric `change`, KL( p̃ ‖ p_T ). Without a bound, logits that the release rule withholds
# would make the metric very large.
FLOOR = math.log(1e-6)


def markov(teacher_logits, a, U, V, T):
    """(log p̃, log p_T), both (N, C), for logits (N, C). a (N,), U and V (N, C, n): those of each image's label."""
    log_p = (teacher_logits / T).log_softmax(1)
    matrix_logits = U @ V.mT + torch.diag_embed(a[:, None].expand_as(log_p))
    return (log_p[:, :, None] + matrix_logits.log_softmax(2)).logsumexp(1), log_p


def mkd_loss(logits, log_target, labels, T, alpha):
    """(loss of the student, loss of the matrices, T² KL, cross-entropy), scalars. log_target: log p̃ (N, C)."""
    distillation, ce = T**2 * kl(log_target.detach(), logits / T), cross_entropy(logits, labels)
    matrices_loss = alpha * T**2 * kl(log_target, logits.detach() / T)
    return alpha * distillation + (1 - alpha) * ce, matrices_loss, distillation, ce


class Matrices(nn.Module):
    """The parameters of the Markov matrices: a (C,), U and V (C, C, n)."""

    def __init__(self, classes, rank, diagonal=None):
        super().__init__()
        a, limit = 1.0, math.sqrt(3 / rank)  # Kaiming's limit for the C×2×n tensors of the CMIM code
        self.U, self.V = (nn.Parameter(torch.empty(classes, classes, rank).uniform_(-limit, limit)) for _ in "UV")
        if diagonal is not None:
            a = math.log(diagonal * (classes - 1) / (1 - diagonal))
            nn.init.zeros_(self.V)
        self.a = nn.Parameter(torch.full((classes,), a))


class MKD(KD):
    @dataclass
    class Params(KD.Params):
        rank: int = key("n, rank of the matrices U Vᵀ; in the paper: 3 on CIFAR, 5 on Tiny-ImageNet", default=3, low=1)
        matrix_learning_rate: float = key("constant learning rate of the matrices", default=0.001, low=0)
        diagonal: float | None = key(
            "β, initial diagonal of the matrices; null: nearly uniform matrices, as in the released code of CMIM",
            default=None,
            above=0,
            below=1,
        )

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        self.matrices = Matrices(zoo.spec.num_classes, params.rank, params.diagonal).to(zoo.device)
        rate = params.matrix_learning_rate
        self.matrices_optimizer = torch.optim.Adam(self.matrices.parameters(), rate, fused=True)

    def extra(self):
        return {"matrices": self.matrices, "matrices_optimizer": self.matrices_optimizer}

    def losses(self, images, labels):
        T, alpha, m = self.params.temperature, self.params.alpha, self.matrices
        logits, teacher_logits = self.model(images), self.teacher(images)
        log_target, log_p = markov(teacher_logits, m.a[labels], m.U[labels], m.V[labels], T)
        loss, matrices_loss, distillation, ce = mkd_loss(logits, log_target, labels, T, alpha)
        self.step_matrices(matrices_loss)
        target = log_target.detach().exp()
        change = (target * (log_target.detach() - log_p.clamp_min(FLOOR))).sum(1).mean()
        on_label = target.gather(1, labels[:, None]).mean()
        return {"loss": loss, "distillation": distillation, "ce": ce, "change": change, "on_label": on_label}

    def step_matrices(self, loss):
        """Make one optimizer step on the matrices. Gradients are averaged over processes."""
        weights = list(self.matrices.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = distributed.sum_over_processes(gradient) / distributed.WORLD_SIZE
        self.matrices_optimizer.step()
