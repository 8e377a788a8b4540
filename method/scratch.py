"""Training from scratch by cross-entropy: baselines, normal teachers and adversarial networks.

    min_f  CE(σ(f(x)), y)

    f  the network trained        σ  softmax        y  the label

With label smoothing ε > 0, the target probability is 1 − ε + ε/C for the label and ε/C for every other class, where C
is the number of classes (Szegedy et al., CVPR 2016).
"""

from dataclasses import dataclass

from method import Method
from utils.keys import key
from utils.losses import cross_entropy


class Scratch(Method):
    @dataclass
    class Params:
        label_smoothing: float = key(
            "ε, share of the target probability that is spread evenly over all classes", default=0.0, low=0, below=1
        )

    def losses(self, images, labels):
        return {"loss": cross_entropy(self.model(images), labels, self.params.label_smoothing)}
