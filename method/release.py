"""Release rules: how a teacher answers queries.

A rule is a subclass of `Release` in the file of its defence. For example, `"release": "stingy"` in a student's
params.json selects the class in method/defend/stingy.py. Rules do not depend on attacks, so every attack works against
every defence.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# The value of a logit that is not released. −∞ is not used, because −∞ − (−∞) is NaN. In float32 such a class has the
# probability 0 at any temperature below 9e6, and adds exactly 0 to KL( teacher ‖ student ).
WITHHELD = -1e9
SMALLEST = 1e-12  # smaller probabilities are replaced by this value, so that their logarithms are finite


def straight_through(logits, perturb):
    """log p' (N, C) for logits (N, C), with a straight-through gradient: that of log softmax(logits).

    perturb: a function that maps probabilities to p', both double (N, C). Attacks without data need a gradient, and
    that of `perturb` is not useful to them.
    """
    log_p = F.log_softmax(logits, 1)
    with torch.no_grad():
        answer = perturb(log_p.double().exp()).clamp_min(SMALLEST).log().to(log_p.dtype)
    return log_p + (answer - log_p).detach()


class Release:
    """The base class of rules. It is also the rule "logits", which returns the teacher's logits (N, C) for images.

    teacher: the frozen network. params: the student's keys, including those in `Params`. images: (N, 3, H, W). Other
    rules override `query`, which changes the images, `answer`, which changes the logits, or `respond`, if the answer
    also depends on the image.
    """

    @dataclass
    class Params:
        """The keys that this rule adds to a student's params.json; see `utils.keys.key`."""

    deterministic = True  # whether equal images always get equal answers

    def __init__(self, teacher, params):
        self.teacher, self.params = teacher, params

    def prepare(self, zoo):
        """Load further networks that the rule needs. Called once, before the first query."""

    def query(self, images):
        return images

    def answer(self, logits):
        return logits

    def respond(self, images, logits):
        """The answer to a query: `images` as the attacker sends them, `logits` of the teacher for `query(images)`."""
        return self.answer(logits)

    def __call__(self, images, with_features=False):
        """Return logits, or (features, logits) if `with_features` is true, for attacks that have the network."""
        if not with_features:
            return self.respond(images, self.teacher(self.query(images)))
        features, logits = self.teacher(self.query(images), with_features=True)
        return features, self.respond(images, logits)


class LabelOnly:
    """A release rule that returns only the most likely class of another rule's answer.

    The answer has the form of logits: 0 for this class and WITHHELD for all others.
    """

    def __init__(self, rule):
        self.rule, self.teacher = rule, rule.teacher

    def __call__(self, images):
        return only_label(self.rule(images))

    def answer(self, logits):
        return only_label(self.rule.answer(logits))


def only_label(logits):
    """Set the highest value in each row of logits (N, C) to 0, and all others to WITHHELD."""
    return torch.full_like(logits, WITHHELD).scatter(1, logits.argmax(1, keepdim=True), 0.0)
