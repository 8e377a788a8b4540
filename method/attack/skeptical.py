"""Skeptical student: Kundu et al., "Analyzing the Confidentiality of Undistillable Teachers in KD", NeurIPS 2021.

    before epoch D   min_s     CE(σ(o_0(x)), y)
    from epoch D on  min_s,h   CE(σ(o_0(x)), y)
                               + α T² KL( σ_T(t(x)) ‖ σ_T(o_l(x)) ) + (1 − α) CE(σ(o_l(x)), y)
                               + 0.3 KL( σ_T(o_0(x)) ‖ σ_T(o_1(x)) ) + 0.7 CE(σ(o_1(x)), y)

o_0  the output of the student s, trained                t    the teacher, frozen
o_1  the deepest auxiliary head of s, on the second to   y    the label
     last stage; o_2 is one stage before, o_3 two, …     T    temperature;  σ_T  softmax(·/T)
o_l  the listener, the head that learns from t; l =      α    weight of the KL divergence in the loss of o_l
     `loc`                                               D    `kd_delay`; epochs are counted from 0
h    the heads o_1 and o_l

o_0 and o_1 learn from the labels and from each other. The teacher affects o_0 only through the shallow layers that o_0
and o_l share. From the released code: the loss, in which the KL divergence of o_1 has no factor T² and a gradient to
both o_0 and o_1; `kd_delay`; `loc`; and heads of separable convolutions behind an attention gate. OURS: the widths of
the heads; the nearest-neighbour interpolation of the gate, which is deterministic on a GPU; the stages of networks
other than ResNets; and that `loc` counts from the deepest stage. The student does not use the heads. The checkpoint is
an ordinary checkpoint of the student, with the heads under "extra".
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from method.attack.kd import KD, kd_loss
from model.auxiliary import Head, stages
from model.network import at_least_float32
from utils.keys import key
from utils.losses import cross_entropy, kl
from utils.metrics import accuracy, evaluate


def skeptical_loss(logits, deepest, listener, teacher_logits, labels, T, alpha, with_heads=1.0):
    """(loss, T² KL of o_l, cross-entropy of o_l, cross-entropy of o_0), four scalars.

    logits, deepest, listener: o_0, o_1, o_l, each (N, C). with_heads: 0 before epoch D, 1 from epoch D on; a number or
    a scalar tensor.
    """
    ce = cross_entropy(logits, labels)
    listener_loss, distillation, ce_listener = kd_loss(listener, teacher_logits, labels, T, alpha)
    deepest_loss = 0.3 * kl(logits, deepest, T) + 0.7 * cross_entropy(deepest, labels)
    return ce + with_heads * (listener_loss + deepest_loss), distillation, ce_listener, ce


class Skeptical(KD):
    @dataclass
    class Params(KD.Params):
        loc: int = key(
            "l, the head that learns from the teacher: 1 is on the second to last stage, 2 one stage before",
            default=2,
            low=1,
        )
        kd_delay: int = key("D, number of epochs before the heads are trained", default=20, low=0)

        @staticmethod
        def problems(params, networks):
            count, problems = len(stages(networks["model_name"])), []
            if params.loc >= count:
                needed = f"{params.loc} needs {params.loc + 1} stages"
                problems.append(f'"loc": {needed}, but {params.model_name} has {count}')
            if params.kd_delay >= params.num_epochs:
                problems.append(
                    f'"kd_delay": must be below "num_epochs" {params.num_epochs}, not {params.kd_delay}, because no '
                    "head would learn from the teacher"
                )
            return problems

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        numbers, modules = sorted({1, params.loc}), stages(self.model)
        self.outputs = [None] * len(numbers)  # outputs of the second to last stage, and of the stage of o_l
        for index, number in enumerate(numbers):
            modules[-1 - number].register_forward_hook(partial(self.keep_output, index))
        size = zoo.spec.image_size
        with torch.no_grad():
            self.model.eval()(torch.zeros(1, 3, size, size, device=zoo.device))
        shapes = (output.shape[1:3] for output in self.outputs)
        self.heads = zoo.place(nn.ModuleList(Head(*shape, self.model.num_classes) for shape in shapes))

    def keep_output(self, index, module, inputs, output):
        self.outputs[index] = output

    @property
    def trained(self):
        return nn.ModuleList([self.model, self.heads])

    def read_heads(self, images):
        """The heads' logits for the last forward pass of `self.model`, on `images`. Call this once after each pass."""
        outputs, self.outputs = self.outputs, [None] * len(self.heads)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.model.bf16):
            return [at_least_float32(head(output)) for head, output in zip(self.heads, outputs, strict=True)]

    def batches(self, loader):
        """Yield (images, labels, with_heads), a tensor each. A CUDA graph cannot contain a number that changes."""
        with_heads = torch.tensor(float(loader.epoch >= self.params.kd_delay), device=self.zoo.device)
        return ((*batch, with_heads) for batch in loader)

    def losses(self, images, labels, with_heads=1.0):
        p, logits, teacher = self.params, self.model(images), self.teacher(images)
        heads = self.read_heads(images)
        terms = skeptical_loss(logits, heads[0], heads[-1], teacher, labels, p.temperature, p.alpha, with_heads)
        return dict(zip(("loss", "distillation", "ce_listener", "ce"), terms, strict=True))

    def evaluate(self, loader):
        self.heads.eval()
        return evaluate(self.model, loader, lambda x, y, _: {"acc_listener": accuracy(self.read_heads(x)[-1], y)})

    def extra(self):
        return {"heads": self.heads}
