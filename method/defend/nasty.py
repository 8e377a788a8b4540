"""Nasty Teacher: Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT teach students", ICLR 2021.

    min_f  CE(σ(f(x)), y) − ω T² KL( σ_T(f(x)) ‖ σ_T(f_A(x)) )                                     (eq. 2)

    f    the network trained, from random weights        σ_T  softmax(·/T)
    f_A  the adversarial network: normally trained,       T    temperature
         then frozen
    y    the label                                        ω    weight

f is the *first* argument of the KL divergence, which PyTorch calls the target. The gradient flows through f.
"""

from dataclasses import dataclass

from method import Method
from utils.keys import key
from utils.losses import cross_entropy, kl


def nasty_loss(logits, adversary_logits, labels, T, weight):
    """Equation 2: (loss, cross-entropy, T² KL), three scalars. Both logits: (N, C). labels: (N,)."""
    ce = cross_entropy(logits, labels)
    divergence = T**2 * kl(logits, adversary_logits, T)
    return ce - weight * divergence, ce, divergence


class Nasty(Method):
    @dataclass
    class Params:
        adversarial_model: str = key("architecture of the adversarial network")
        adversarial_resume: str = key("checkpoint of the adversarial network: another experiment's best_model.tar")
        temperature: float = key("T, the paper's τ_A: temperature of the KL divergence", above=0)
        weight: float = key("ω, weight of the KL divergence", low=0)

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        self.adversary = zoo.frozen(params.adversarial_model, params.adversarial_resume)

    def losses(self, images, labels):
        T, weight = self.params.temperature, self.params.weight
        loss, ce, divergence = nasty_loss(self.model(images), self.adversary(images), labels, T, weight)
        return {"loss": loss, "ce": ce, "divergence": divergence}
