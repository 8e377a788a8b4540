"""Safe Distillation Box: Ye et al., AAAI 2022.

Everyone can use the network. Only users who have the key, an image K, can distil the network.

    x_k = λ x + (1 − λ) K                                                       an image with the key
    min_f  2 CE(σ(f(x)), y) + CE(σ(f(x_k)), y)                                  embedding of the key
      − w [ T² KL(σ_T(f(x)) ‖ σ_T(f_A(x))) − KL(σ(f(x)) ‖ sg[σ(f(x_k))]) ]      disturbance of knowledge
      + M( σ_T(f_A(x)), σ_T(f(x_k)) )                                           preservation
    + s η [ 0.01 M(relu f_A(x), relu f(x_k)) − M(relu f_R(x), relu f(x_k)) ]    augmentation

f    the network trained                                 λ, w, η  `mix`, `weight`, `eta`
f_A  a normally trained network, frozen                  T        temperature
f_R  a network of f's architecture with random weights,  M        mean squared error
     frozen                                              s        +1 or −1, `eta_sign`
K    the key, an image                                   σ_T      softmax(·/T)
y    the label                                           sg       stops the gradient

The paper prints s = −1. This sign moves f(x_k) towards f_R and away from f_A. The purpose of the term is the opposite.
So the default `eta_sign` "purpose" is +1, and "printed" is −1. With +1 the loss has no lower bound and f(x_k) can
diverge. In this case the logged term `augmentation` becomes very negative. λ is 0.9 by default, as in the released
code; the paper has 0.5. K and f_R depend only on the seed. K is saved as key.tar in the run folder. This file also
defines the release rule "sdb": the teacher t answers a query x with t(x_k).

If `joint` is true, x and x_k form one batch. The statistics of batch norm are then those of the same mixture of images
in training and in evaluation. The released code makes two passes, each with its own batch statistics. Its evaluation
uses one running average of both, and the accuracy with the key collapses. `mse` selects how M reduces over classes. The
released code requests "batchmean", which MSELoss does not support. See docs/deviations.md.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import model
from method import Method
from method.image_key import ImageKey, load_key, random_key, seed_for
from method.release import Release
from utils import checkpoint
from utils.data import spec_of
from utils.distributed import RANK
from utils.errors import UserError
from utils.keys import key
from utils.losses import cross_entropy, kl
from utils.metrics import accuracy, evaluate
from utils.paths import display_path, from_root


def sdb_loss(logits, key_logits, adversary_logits, random_logits, labels, T, weight, eta, sign, mse="sum"):
    """Return (loss, embedding, disturbance, preservation, augmentation), scalars.

    The first four arguments are the logits of f(x), f(x_k), f_A(x) and f_R(x), each of shape (N, C). The terms are
    returned without `weight` and `eta`. sign: s, 1 or −1. mse: reduction of squared errors over classes, "sum" or
    "mean"; the result is averaged over images.
    """
    scale = logits.shape[1] if mse == "sum" else 1
    embedding = 2 * cross_entropy(logits, labels) + cross_entropy(key_logits, labels)
    disturbance = T**2 * kl(logits, adversary_logits, T) - kl(logits, key_logits.detach())
    preservation = scale * F.mse_loss((key_logits / T).softmax(1), (adversary_logits / T).softmax(1))
    near, far = (scale * F.mse_loss(key_logits.relu(), other.relu()) for other in (adversary_logits, random_logits))
    augmentation = 0.01 * near - far
    loss = embedding - weight * disturbance + preservation + sign * eta * augmentation
    return loss, embedding, disturbance, preservation, augmentation


class SDB(Method):
    @dataclass
    class Params:
        adversarial_model: str = key("architecture of the original network, f_A")
        adversarial_resume: str = key("checkpoint of f_A: the best_model.tar of another experiment")
        temperature: float = key("T, temperature in the disturbance and preservation terms", above=0)
        mix: float = key("λ, weight of the input image; the key has weight 1 − λ", default=0.9, above=0, high=1)
        weight: float = key("w, weight of the disturbance term", default=1.0, low=0)
        eta: float = key("η, weight of the augmentation term", default=0.001, low=0)
        eta_sign: str = key(
            "s, sign of the augmentation term: purpose is +1; printed is −1, as in the paper",
            default="purpose",
            choices=("purpose", "printed"),
        )
        joint: bool = key(
            "images with and without the key form one batch, with the same batch-norm statistics", default=True
        )
        mse: str = key("reduction of the mean squared error over classes", default="sum", choices=("sum", "mean"))

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        self.adversary = zoo.frozen(params.adversarial_model, params.adversarial_resume)
        self.key = ImageKey(random_key(zoo.spec, params.seed), params.mix, zoo.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_for(params.seed, "random network"))
            self.random = zoo.freeze(zoo.fresh(params.model_name, **model.options_in(vars(params), params.model_name)))

    def begin(self, run):
        if RANK == 0:
            extra = {"key": self.key.state_dict()}
            checkpoint.save(run.folder / "key.tar", {"extra": extra, "params": {"mix": self.params.mix}})

    def losses(self, images, labels):
        p, inputs = self.params, (images, self.key(images))
        logits, key_logits = self.model(torch.cat(inputs)).chunk(2) if p.joint else map(self.model, inputs)
        settings = p.temperature, p.weight, p.eta, 1 if p.eta_sign == "purpose" else -1, p.mse
        terms = sdb_loss(logits, key_logits, self.adversary(images), self.random(images), labels, *settings)
        return dict(zip(("loss", "embedding", "disturbance", "preservation", "augmentation"), terms, strict=True))

    def evaluate(self, loader):
        return evaluate(self.model, loader, lambda x, labels, _: {"acc_key": accuracy(self.model(self.key(x)), labels)})

    def extra(self):
        return {"key": self.key}


class Keyed(Release):
    @dataclass
    class Params:
        key_resume: str = key("file with the key: key.tar in the teacher's run folder, or a checkpoint of the teacher")
        mix: float | None = key(
            "λ, weight of the image in a query with the key; null: the mix of the teacher",
            default=None,
            above=0,
            high=1,
        )

    def __init__(self, teacher, params):
        super().__init__(teacher, params)
        size = spec_of(params).image_size
        image, mix = load_key(params.key_resume, size)
        if not torch.equal(image, load_key(params.teacher_resume, size)[0]):
            raise UserError(f"{display_path(from_root(params.key_resume))}: not the key of this teacher")
        self.query = ImageKey(image, params.mix or mix, next(teacher.parameters()).device)
