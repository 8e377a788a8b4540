"""CMIM, a teacher with minimal conditional mutual information: Ye, Hamidi and Yang, 2025 (arXiv 2507.00012).

    P_x^T = σ_T(f(x)),   Q_y^T = mean of P_x^T over the images of class y
    CMI_T = mean over x of KL( P_x^T ‖ Q_y^T )                  the conditional mutual information I(X; Ŷ | Y) at T
    min_f  CE(σ(f(x)), y) + λ mean over T of T² CMI_T

f    the network trained        T  one of `temperatures` values, evenly spaced in log T from 1 to `hottest`
y    the label of x             Ŷ  the predicted class, distributed as P_x^T
σ_T  softmax(·/T)               λ  `weight`

If CMI_T is 0, all images of a class get the same answer, so an answer contains only the label. The paper defines P, Q
and CMI, and uses a range of temperatures. In the authors' code, the file of this method is empty. OURS: the set of
temperatures; the weight T² of each, as in a distillation loss; the default of λ; and the estimate of Q, an exponential
moving average over batches that is weighted by the number of images of each class and has no gradient.
"""

from dataclasses import dataclass

import torch
from torch import nn

from method import Method
from utils import distributed
from utils.keys import key
from utils.losses import cross_entropy, kl
from utils.metrics import evaluate


def cmi(logits, log_centroids, labels, temperatures):
    """A list with the scalar T² CMI_T of each temperature T. log_centroids: log Q, (temperatures, C, C)."""
    pairs = zip(temperatures, log_centroids, strict=True)
    return [T**2 * kl(logits / T, log_Q[labels]) for T, log_Q in pairs]


class Centroids(nn.Module):
    """Q as the quotient of two moving averages: the sum of P_x^T over the images of a class, and their number.

    sums: (temperatures, C, C). counts: (C,). A batch without images of a class does not change the Q of this class.
    """

    def __init__(self, temperatures, classes, momentum):
        super().__init__()
        self.temperatures, self.momentum = temperatures, momentum
        self.register_buffer("sums", torch.zeros(len(temperatures), classes, classes))
        self.register_buffer("counts", torch.zeros(classes))

    @torch.no_grad()
    def update(self, logits, labels):
        members = torch.zeros_like(logits).scatter(1, labels[:, None], 1.0).T
        sums = torch.stack([members @ (logits / T).softmax(1) for T in self.temperatures])
        for average, batch in ((self.sums, sums), (self.counts, members.sum(1))):
            average.lerp_(distributed.sum_over_processes(batch), 1 - self.momentum)

    def log(self):
        """log Q, with finite values only. Q is uniform for a class without images so far."""
        tiny = torch.finfo(self.sums.dtype).tiny
        return (self.sums / self.counts.clamp_min(tiny)[:, None]).clamp_min(tiny).log().log_softmax(2)


class CMIM(Method):
    @dataclass
    class Params:
        weight: float = key("λ, weight of the conditional mutual information", default=0.1, low=0)
        temperatures: int = key("number of temperatures", default=5, low=1)
        hottest: float = key("highest temperature; the lowest is 1", default=20.0, low=1)
        centroid_momentum: float = key(
            "momentum of the moving averages for Q: the weight of earlier batches", default=0.95, low=0, below=1
        )

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        count = params.temperatures
        self.temperatures = [params.hottest ** (k / max(count - 1, 1)) for k in range(count)]
        centroids = Centroids(self.temperatures, zoo.spec.num_classes, params.centroid_momentum)
        self.centroids = centroids.to(zoo.device)

    def losses(self, images, labels):
        logits = self.model(images)
        self.centroids.update(logits, labels)
        ce, terms = cross_entropy(logits, labels), cmi(logits, self.centroids.log(), labels, self.temperatures)
        information = sum(terms) / len(terms)
        return {"loss": ce + self.params.weight * information, "ce": ce, "cmi": information}

    def evaluate(self, loader):
        log_centroids = self.centroids.log()

        def information(images, labels, logits):
            terms = cmi(logits, log_centroids, labels, self.temperatures)
            return {"cmi": sum(terms) / len(terms)}

        return evaluate(self.model, loader, information)

    def extra(self):
        return {"centroids": self.centroids}
