"""Skeptical student: Kundu et al., "Analyzing the Confidentiality of Undistillable Teachers in KD", NeurIPS 2021.

    min_{s, a}  α T² KL( σ_T(t(x)) ‖ σ_T(a_1(x)) ) + (1 − α) CE(σ(a_1(x)), y)                    the listener
              + Σ_k β T² KL( σ_T(sg[a_1(x)]) ‖ σ_T(o_k(x)) ) + (1 − β) CE(σ(o_k(x)), y)      o = a_2 … a_m, s

s    the student, trained            T    temperature
a_k  heads on its `stages`           α    share of the teacher in a_1's loss
t    the teacher, frozen             β    `beta`: share of a_1 in the losses of the deeper heads and of s
y    the label                       sg   stops the gradient;  σ_T  softmax(·/T)

Published is the idea: heads at shallow depths, of which a shallow one alone listens to the teacher, while the final one
learns from the labels and from it. So a nasty teacher spoils the first stages at most. The equation, what a head is made
of, which stages have one and β are OURS. `stages` counts from 1; heads serve training only, and the checkpoint is an
ordinary one of the student (with the heads under "extra").
"""

import re
from dataclasses import dataclass

import torch
from torch import nn

from method.attack.kd import KD, kd_loss
from model.network import at_least_float32
from utils.engine import accuracy, score
from utils.errors import UserError
from utils.keys import key

# Names of the parts whose outputs are stages: most networks; densenet; net
STAGES = (r"(layer|stage_?)\d", r"features\.dense_block(_layer_)?\d", r"conv\d")


def skeptical_loss(head_logits, logits, teacher_logits, labels, T, alpha, beta):
    """(loss, the listener's T² KL, its cross-entropy, the final head's). head_logits: of a_1 … a_m, each (N, C)."""
    listener, *deeper = head_logits
    loss, distillation, ce_listener = kd_loss(listener, teacher_logits, labels, T, alpha)
    terms = [kd_loss(own, listener.detach(), labels, T, beta) for own in (*deeper, logits)]
    return loss + sum(term[0] for term in terms), distillation, ce_listener, terms[-1][2]


def stages(network):
    """The parts of a network, in order, whose outputs (N, channels, H, W) a head may read; [] where there are none."""
    for pattern in STAGES:
        found = [part for name, part in network.named_modules() if re.fullmatch(pattern, name)]
        if found:
            return [part for part in found if not isinstance(part, nn.Identity)]
    return []


def head(channels, num_classes):
    linear = nn.Linear(channels, num_classes)
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


class Skeptical(KD):
    @dataclass
    class Params(KD.Params):
        stages: list[int] = key("which stages have heads, from 1; the first of them listens", default=(1, 2))
        beta: float = key("β, share of the listener in the other losses", default=0.5, low=0, high=1)

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        found, wanted = stages(self.model), list(params.stages)
        if not wanted or wanted != sorted(set(wanted)) or not 1 <= wanted[0] <= wanted[-1] <= len(found):
            raise UserError(f'"stages": {wanted}: must rise within 1 to {len(found)}, the stages of {params.model_name}')
        self.outputs = [None] * len(wanted)
        for place, number in enumerate(wanted):
            found[number - 1].register_forward_hook(lambda part, _, out, place=place: self.keep(place, out))
        size = zoo.spec.image_size
        with torch.no_grad():
            self.model.eval()(torch.zeros(1, 3, size, size, device=zoo.device))
        heads = nn.ModuleList(head(out.shape[1], self.model.num_classes) for out in self.outputs)
        self.heads = heads.to(zoo.device)

    def keep(self, place, out):
        self.outputs[place] = out

    @property
    def trained(self):
        return nn.ModuleList([self.model, self.heads])

    def read_heads(self, images):
        """The heads' logits for the images that `self.model` has just seen."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.model.bf16):
            return [at_least_float32(head(out)) for head, out in zip(self.heads, self.outputs, strict=True)]

    def losses(self, images, labels):
        p, logits = self.params, self.model(images)
        settings = labels, p.temperature, p.alpha, p.beta
        terms = skeptical_loss(self.read_heads(images), logits, self.teacher(images), *settings)
        return dict(zip(("loss", "distillation", "ce_listener", "ce"), terms, strict=True))

    def evaluate(self, loader):
        self.heads.eval()
        return score(self.model, loader, self.listener)

    def listener(self, images, labels, logits):
        return {"acc_listener": accuracy(self.read_heads(images)[0], labels)}

    def extra(self):
        return {"heads": self.heads}
