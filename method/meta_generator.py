"""Make a batch of images with a generator in few steps: the synthesis of Fast-DFKD, Fang et al., AAAI 2022.

    L(x, ŷ) = a_bn Σ_l ( ‖μ_l(x) − m_l‖₂ + ‖σ²_l(x) − v_l‖₂ ) + a_oh CE(t(x), ŷ) − a_adv A(x)
    A(x)    = mean over x of KL( σ(t(x)) ‖ σ(s(x)) ) · 1[ argmax s(x) = argmax t(x) ]
    G' ← G;  k times: (G', z) ← Adam on L(G'(z), ŷ);  G ← Adam on Σ_k ∇_{G'} L            (first-order MAML)

G  the generator; z: noise; ŷ: classes    m_l, v_l   running mean and variance of batch norm l
t  the network that is inverted           μ_l, σ²_l  mean and variance of the input of batch norm l for x
s  its student                            a_…        weights
"""

import copy

import torch

from method.inversion import batch_norm_distances
from utils.losses import cross_entropy

BETAS = 0.5, 0.999
TERMS = "synthesis", "bn", "one_hot", "adversarial"


def synthesis_loss(logits, student_logits, labels, bn, a_bn, a_oh, a_adv):
    """(L, its cross-entropy, A), three scalars. Both logits: (N, C). labels: ŷ (N,). bn: the sum over batch norms."""
    one_hot = cross_entropy(logits, labels)
    agree = logits.argmax(1) == student_logits.argmax(1)
    log_p, log_q = logits.log_softmax(1), student_logits.log_softmax(1)
    adversarial = ((log_p.exp() * (log_p - log_q)).sum(1) * agree).mean()
    return a_bn * bn + a_oh * one_hot - a_adv * adversarial, one_hot, adversarial


def meta_optimizer(generator, learning_rate, steps):
    """The optimizer of G. Its learning rate is that of G' times `steps`, the number of gradients in the sum."""
    return torch.optim.Adam(generator.parameters(), learning_rate * steps, BETAS, fused=True)


def synthesise(
    generator, optimizer, network, student, z, labels, *, steps, learning_rate, noise_learning_rate, a_bn, a_oh, a_adv
):
    """Make `steps` steps on a copy of G and on z, and one step of G.

    Returns the images of the step with the lowest L: (normalised images (N, 3, H, W), values of TERMS (4,)).
    generator: G. optimizer: the `meta_optimizer` of G. network, student: networks in eval mode. z: noise
    (N, noise_size). labels: ŷ (N,).
    """
    fast, z = copy.deepcopy(generator), z.clone().requires_grad_()
    weights, best, values = list(fast.parameters()), None, None
    own = torch.optim.Adam([{"params": weights}, {"params": [z], "lr": noise_learning_rate}], learning_rate, BETAS)
    totals = [torch.zeros_like(weight) for weight in weights]
    with batch_norm_distances(network) as found:
        for _ in range(steps):
            found.clear()
            images = fast(z)
            logits, student_logits = network(images), student(images)
            bn = sum(found)
            loss, *terms = synthesis_loss(logits, student_logits, labels, bn, a_bn, a_oh, a_adv)
            new = torch.stack((loss, bn, *terms)).detach()
            if values is None or new[0] < values[0]:
                best, values = images.detach(), new
            own.zero_grad()
            loss.backward(inputs=[*weights, z])
            torch._foreach_add_(totals, [weight.grad for weight in weights])
            own.step()
    for weight, total in zip(generator.parameters(), totals, strict=True):
        weight.grad = total
    optimizer.step()
    return best, values
