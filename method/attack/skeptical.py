"""Skeptical student: Kundu et al., "Analyzing the Confidentiality of Undistillable Teachers in KD", NeurIPS 2021.

    min_{s, a}  α T² KL( σ_T(t(x)) ‖ σ_T(a(x)) ) + (1 − α) CE(σ(a(x)), y)                        the listener
              + Σ_o β T² KL( σ_T(sg[a(x)]) ‖ σ_T(o(x)) ) + (1 − β) CE(σ(o(x)), y)           all other outputs

s  the student, trained                                T    temperature
a  the head on the last of its `stages`                α    share of the teacher in the listener's loss
o  s itself, and the heads on the other `stages`       β    `beta`: share of the listener in the other losses
t  the teacher, frozen;  y  the label                  sg   stops the gradient;  σ_T  softmax(·/T)

Published is the idea: of heads at shallow depths a shallow one alone listens to the teacher; the final one learns from
the labels and from that head. The equation, what a head is made of, where heads are and β are OURS. Heads serve
training only: the checkpoint is an ordinary one of the student, with the heads beside it under "extra".
"""

import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from method.attack.kd import KD, kd_loss
from model.network import at_least_float32
from utils.keys import key
from utils.metrics import accuracy, evaluate

# Parts whose outputs are stages, in most networks, densenet, net
STAGES = (r"(layer|stage_?)\d", r"features\.dense_block(_layer_)?\d", r"conv\d")
WIDEST = 512  # channels of a head, unless its stage has more


def skeptical_loss(head_logits, logits, teacher_logits, labels, T, alpha, beta):
    """(loss, the listener's T² KL, its cross-entropy, the student's). head_logits: of all heads, the listener last."""
    *others, listener = head_logits
    loss, distillation, ce_listener = kd_loss(listener, teacher_logits, labels, T, alpha)
    terms = [kd_loss(own, listener.detach(), labels, T, beta) for own in (*others, logits)]
    return loss + sum(term[0] for term in terms), distillation, ce_listener, terms[-1][2]


def stages(network):
    """The parts of a network, in order, whose outputs (N, channels, H, W) a head may read; [] where there are none."""
    for pattern in STAGES:
        found = [part for name, part in network.named_modules() if re.fullmatch(pattern, name)]
        if found:
            return [part for part in found if not isinstance(part, nn.Identity)]
    return []


def head(channels, size, num_classes):
    """A classifier of outputs (N, channels, size, size): strided convolutions down to 4 pixels, twice as wide each."""
    layers = [nn.BatchNorm2d(channels), nn.ReLU()]
    while size > 4:
        wider = max(channels, min(2 * channels, WIDEST))
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        channels, size = wider, (size + 1) // 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class Skeptical(KD):
    @dataclass
    class Params(KD.Params):
        stages: list[int] = key("which stages have heads, counted from 1; the last listens", default=(1, 2))
        beta: float = key("β, share of the listener in the other losses", default=0.5, low=0, high=1)

        @staticmethod
        def problems(params, networks):
            wanted, found = list(params.stages), stages(networks["model_name"])
            if wanted and wanted == sorted(set(wanted)) and 1 <= wanted[0] and wanted[-1] <= len(found):
                return []
            there_are = f"{params.model_name} has {len(found)}"
            return [f'"stages": {there_are}; must be some of them, counted from 1, rising, not {wanted}']

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        found = stages(self.model)
        self.outputs = [None] * len(params.stages)
        for place, number in enumerate(params.stages):
            found[number - 1].register_forward_hook(partial(self.keep, place))
        size = zoo.spec.image_size
        with torch.no_grad():
            self.model.eval()(torch.zeros(1, 3, size, size, device=zoo.device))
        shapes = (output.shape[1:3] for output in self.outputs)
        self.heads = zoo.place(nn.ModuleList(head(*shape, self.model.num_classes) for shape in shapes))

    def keep(self, place, part, inputs, output):
        self.outputs[place] = output

    @property
    def trained(self):
        return nn.ModuleList([self.model, self.heads])

    def read_heads(self, images):
        """The heads' logits for the images that `self.model` has just seen; once, and then its outputs are let go."""
        outputs, self.outputs = self.outputs, [None] * len(self.heads)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.model.bf16):
            return [at_least_float32(own(output)) for own, output in zip(self.heads, outputs, strict=True)]

    def losses(self, images, labels):
        p, logits, teacher = self.params, self.model(images), self.teacher(images)
        terms = skeptical_loss(self.read_heads(images), logits, teacher, labels, p.temperature, p.alpha, p.beta)
        return dict(zip(("loss", "distillation", "ce_listener", "ce"), terms, strict=True))

    def evaluate(self, loader):
        self.heads.eval()
        return evaluate(self.model, loader, lambda x, y, _: {"acc_listener": accuracy(self.read_heads(x)[-1], y)})

    def extra(self):
        return {"heads": self.heads}
