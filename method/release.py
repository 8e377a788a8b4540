"""How a teacher answers queries. A defended one may want a key with the image, or keep most logits to itself.

A rule lies in the file of its defence: `"release": "stingy"` in a student's params.json finds the class derived from
`Release` in method/defend/stingy.py. So every attack meets every defence.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Stands for −∞, a logit that is not released: −∞ − (−∞) is not a number. Its probability is exactly 0 in float32 at any
# temperature below 9e6, and 0 · log 0 = 0 in a divergence.
WITHHELD = -1e9
SMALLEST = 1e-12  # probability that a rule of `straight_through` answers instead of 0


def straight_through(logits, perturb):
    """log p' (N, C) of logits (N, C); perturb: a function from probabilities to p', double (N, C) both.

    Its gradient is that of log σ(logits): an attacker who holds the teacher passes by a rule that has no useful one.
    """
    log_p = F.log_softmax(logits, 1)
    with torch.no_grad():
        answer = perturb(log_p.double().exp()).clamp_min(SMALLEST).log().to(log_p.dtype)
    return log_p + (answer - log_p).detach()


class Release:
    """The rule "logits": images (N, 3, H, W) are answered with the teacher's logits (N, C).

    teacher: the frozen network. params: the student's keys, those in `Params` among them. Other rules change the
    images on their way in, or the logits on their way out.
    """

    @dataclass
    class Params:
        """The keys that this rule adds to a student's params.json; see `utils.keys.key`."""

    def __init__(self, teacher, params):
        self.teacher, self.params = teacher, params

    def prepare(self, zoo):
        """Load what the rule needs besides, such as another network; called once, before the first query."""

    def query(self, images):
        return images

    def answer(self, logits):
        return logits

    def __call__(self, images, with_features=False):
        """Logits; with `with_features`, what an attacker inside the teacher sees: (features, logits)."""
        features, logits = self.teacher(self.query(images), with_features=True)
        logits = self.answer(logits)
        return (features, logits) if with_features else logits
