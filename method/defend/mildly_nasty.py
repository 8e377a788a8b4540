"""Mildly Nasty Teachers, 2021: the loss of a nasty teacher, applied to a part of the network.

    min_f  CE(σ(f(x)), y) − ω T² KL( σ_T(f'(x)) ‖ σ_T(f_A(x)) )            (Nasty Teacher's eq. 2 with f' = f)

    variant       f                                          layers trained       f'
    "half"        starts from random weights                 all                  head( sg[features(x)] ): the KL's
                                                                                  gradient reaches the last layer only
    "light"       starts from f_A's weights                  the last one         f
    "light_deep"  two new linear layers of widths L and C    the two new ones     f
                  on f_A's features

f is the network trained, f_A the adversarial network, T the temperature and ω `weight`, as in nasty.py. L is `width`;
null means C, the number of classes, as in the released code. sg stops the gradient. In the light variants, the layers
that are not trained are frozen. With `body` "train", as in the released code, the frozen layers run in train mode: they
use batch statistics in training and update their running averages. With "eval", they run in eval mode, with the running
averages of f_A.

The light variants start from f_A, so accuracy may be highest before the defence takes effect. Students still load
best_model.tar, as in the released code.

The two layers of "light_deep" have no activation between them, so they are equal to one linear layer. The checkpoint
has this one layer and is an ordinary checkpoint of `model_name`. The two layers are also saved in the checkpoint, under
"extra", so that the run can continue.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from method.defend.nasty import Nasty, nasty_loss
from model.network import at_least_float32
from utils.keys import key
from utils.losses import cross_entropy, kl


def half_loss(logits, head_logits, adversary_logits, labels, T, weight):
    """(loss, cross-entropy, T² KL). head_logits: logits whose gradient reaches only the last layer."""
    ce, divergence = cross_entropy(logits, labels), T**2 * kl(head_logits, adversary_logits, T)
    return ce - weight * divergence, ce, divergence


class MildlyNasty(Nasty):
    @dataclass
    class Params(Nasty.Params):
        variant: str = key(
            "half: all layers are trained, but only the last one by the KL divergence; light: only the last layer is "
            "trained; light_deep: only two new last layers are trained",
            choices=("half", "light", "light_deep"),
        )
        width: int | None = key(
            "L, number of outputs of the first new layer of light_deep; null: the number of classes",
            default=None,
            low=1,
        )
        body: str = key(
            "mode of the frozen layers of light and light_deep during training",
            default="train",
            choices=("train", "eval"),
        )

        @staticmethod
        def problems(params, networks):
            if params.variant == "half" or params.model_name == params.adversarial_model:
                return []
            reason = f"because {params.variant} starts from the weights of the adversarial network"
            return [f'"model_name": must be {params.adversarial_model}, {reason}']

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        self.new_layers = None
        if params.variant == "half":
            return
        if not params.resume:
            zoo.load_weights(self.model, params.adversarial_resume)
        self.model.eval().requires_grad_(False)
        self.last_name, self.last = list(self.model.named_modules())[-1]  # the classifier is always the last module
        if params.variant == "light_deep":
            inputs, outputs = self.last.weight.shape[1], self.model.num_classes
            width = params.width or outputs
            new_layers = nn.Sequential(nn.Linear(inputs, width), nn.Linear(width, outputs))
            self.new_layers = new_layers.to(zoo.device)
        else:
            self.last.requires_grad_(True)

    @property
    def trained(self):
        if self.params.variant == "half":
            return self.model
        layers = self.new_layers or self.last
        # The engine puts all layers of the returned module into train mode.
        return nn.ModuleList([self.model, layers]) if self.params.body == "train" else layers

    def losses(self, images, labels):
        T, weight, adversary_logits = self.params.temperature, self.params.weight, self.adversary(images)
        if self.params.variant == "half":
            features, logits = self.model(images, with_features=True)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.model.bf16):
                head_logits = at_least_float32(self.model.head(features.detach()))
            terms = half_loss(logits, head_logits, adversary_logits, labels, T, weight)
        elif self.new_layers:
            logits = functional_call(self.model, self.merged(), (images,))
            terms = nasty_loss(logits, adversary_logits, labels, T, weight)
        else:
            terms = nasty_loss(self.model(images), adversary_logits, labels, T, weight)
        return dict(zip(("loss", "ce", "divergence"), terms, strict=True))

    def batches(self, loader):
        yield from loader
        if self.new_layers:  # copy the merged layer into the network, for evaluation and for the checkpoint
            self.model.load_state_dict({n: w.detach() for n, w in self.merged().items()}, strict=False)

    def merged(self):
        """The two layers as the weights of one layer: W₂(W₁h + b₁) + b₂ = (W₂W₁)h + (W₂b₁ + b₂)."""
        first, second = self.new_layers
        weight = (second.weight @ first.weight).view_as(self.last.weight)
        bias = second.weight @ first.bias + second.bias
        return {f"{self.last_name}.weight": weight, f"{self.last_name}.bias": bias}

    def extra(self):
        return {"layers": self.new_layers} if self.new_layers else {}
