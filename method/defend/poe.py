"""Product of experts (PoE), from "The Distillation Game": Allouah, Haghifam, Koyejo and Shokri, 2026 (arXiv
2605.22737). This is a release rule, which needs no training of the teacher.

    z'(x) = (1 − γ) t(x) + γ p(x),   so that σ(z')_k ∝ σ(t)_k^{1−γ} σ(p)_k^γ

t  the teacher    p  the proxy: a small network, such as a student, trained normally    γ  `proxy_share`
σ  softmax        z' the answer

The rule moves the answer towards what a student could learn without the teacher. The published rule changes the
next-token probabilities of a language model. OURS: the use of the rule on the logits of a classifier. The most likely
class may change, which can reduce accuracy.
"""

from dataclasses import dataclass

from method.release import Release
from utils.keys import key


def product(logits, proxy_logits, gamma):
    """z' (N, C). Both logits: (N, C)."""
    return (1 - gamma) * logits + gamma * proxy_logits


class PoE(Release):
    @dataclass
    class Params:
        proxy_model: str = key("architecture of the proxy, a small network that was trained normally")
        proxy_resume: str = key("checkpoint of the proxy: another experiment's best_model.tar")
        proxy_share: float = key(
            "γ, weight of the proxy's logits; the teacher's logits have the weight 1 − γ", default=0.6, low=0, high=1
        )

    def prepare(self, zoo):
        self.proxy = zoo.frozen(self.params.proxy_model, self.params.proxy_resume)

    def respond(self, images, logits):
        return product(logits, self.proxy(images), self.params.proxy_share)
