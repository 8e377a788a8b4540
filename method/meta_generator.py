"""Make a batch of images with a generator in a few steps: the synthesis of Fast-DFKD, Fang et al., AAAI 2022.

    L(x, ŷ) = a_bn Σ_l ( ‖μ_l(x) − m_l‖₂ + ‖σ²_l(x) − v_l‖₂ ) + a_oh CE(σ(t(x)), ŷ) − a_adv A(x)
    A(x)    = mean over the images of KL( σ(t(x)) ‖ σ(s(x)) ) · 1[ argmax s(x) = argmax t(x) ]
    G' ← G;  k times: (G', z) ← Adam on L(G'(z), ŷ);  G ← Adam on Σ_k ∇_{G'} L            (first-order MAML)

x  a batch of images                 m_l, v_l   running mean and variance of batch norm l
ŷ  the classes of the images         μ_l, σ²_l  mean and variance of the input of batch norm l for x
t  the network that is inverted      a_…        weights
s  a student of t                    1[·]       1 if the condition is true, else 0
G  the generator; G': a copy         k          `steps`, the key `generator_steps`
z  noise                             σ          softmax
"""

import copy

import torch

from method.inversion import batch_norm_distances
from utils.losses import cross_entropy

BETAS = 0.5, 0.999
TERMS = "synthesis", "bn", "one_hot", "adversarial"  # L, the sum over l, CE and A


def synthesis_loss(logits, student_logits, labels, bn, a_bn, a_oh, a_adv):
    """(L, cross-entropy, A), three scalars. Both logits: (N, C). labels: ŷ (N,). bn: the sum over l in the equation."""
    one_hot = cross_entropy(logits, labels)
    agree = logits.argmax(1) == student_logits.argmax(1)
    log_p, log_q = logits.log_softmax(1), student_logits.log_softmax(1)
    adversarial = ((log_p.exp() * (log_p - log_q)).sum(1) * agree).mean()
    return a_bn * bn + a_oh * one_hot - a_adv * adversarial, one_hot, adversarial


def meta_optimizer(generator, learning_rate, steps):
    """The optimizer of G. As in the released code, its learning rate is `steps` times that of G', `learning_rate`."""
    return torch.optim.Adam(generator.parameters(), learning_rate * steps, BETAS, fused=True)


def synthesise(
    generator, optimizer, network, student, z, labels, *, steps, learning_rate, noise_learning_rate, a_bn, a_oh, a_adv
):
    """Make `steps` optimizer steps on a copy of G and on z, then one step on G.

    Returns (normalised images (N, 3, H, W), values of TERMS (4,)) of the step with the lowest L.

    generator: G. optimizer: the `meta_optimizer` of G. network, student: networks in eval mode. z: noise
    (N, noise_size). labels: ŷ (N,). learning_rate: that of G'. noise_learning_rate: that of z.
    """
    inner_generator, z = copy.deepcopy(generator), z.clone().requires_grad_()
    weights, best, values = list(inner_generator.parameters()), None, None
    groups = [{"params": weights}, {"params": [z], "lr": noise_learning_rate}]
    inner_optimizer = torch.optim.Adam(groups, learning_rate, BETAS)
    totals = [torch.zeros_like(weight) for weight in weights]
    with batch_norm_distances(network) as distances:
        for _ in range(steps):
            distances.clear()
            images = inner_generator(z)
            logits, student_logits = network(images), student(images)
            bn = sum(distances)
            loss, *terms = synthesis_loss(logits, student_logits, labels, bn, a_bn, a_oh, a_adv)
            new = torch.stack((loss, bn, *terms)).detach()
            if values is None or new[0] < values[0]:
                best, values = images.detach(), new
            inner_optimizer.zero_grad()
            loss.backward(inputs=[*weights, z])
            torch._foreach_add_(totals, [weight.grad for weight in weights])
            inner_optimizer.step()
    for weight, total in zip(generator.parameters(), totals, strict=True):
        weight.grad = total
    optimizer.step()
    return best, values
