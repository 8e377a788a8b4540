"""DFAD, Data-Free Adversarial Distillation: Fang et al., 2019 (arXiv 1912.11006).

min_s max_G  D,   D = E_z mean| s(Gz) − t(Gz) |,  on the logits

G    the generator of normalised images              s    the student, trained
z    standard normal noise                           t    the teacher, frozen

An iteration is one step of the generator and `student_steps` steps of the student, each with new z. In the paper the
student's steps come first. Here the generator's step comes first, so that its loss can be logged from the first step
on. The two orders differ only at the start and at the end of training.
"""

from dataclasses import dataclass

import torch

from method.datafree import Generating
from method.release import WITHHELD
from utils.keys import key


def dfad_loss(logits, teacher_logits):
    """D: the mean of |s − t| over a batch and its classes, without logits that the teacher withholds. Both: (N, C)."""
    withheld = teacher_logits <= WITHHELD
    difference = (logits - teacher_logits).masked_fill(withheld, 0.0)
    return difference.abs().sum() / (~withheld).sum()


class DFAD(Generating):
    @dataclass
    class Params(Generating.Params):
        iterations_per_epoch: int = key("iterations per epoch; there is no training set", default=50, low=1)
        student_steps: int = key("steps of the student per step of the generator", default=5, low=1)
        noise_size: int = key("length of the noise vector z", default=256, low=1)
        generator_learning_rate: float = key("initial learning rate of the generator", default=0.001, above=0)
        generator_gamma: float = key(
            "factor by which the generator's learning rate is multiplied at each epoch in schedule",
            default=0.1,
            above=0,
        )

    @property
    def student_steps(self):
        return self.params.student_steps

    def iteration(self):
        generator_noise = self.noise()
        yield self.noise(), generator_noise
        for _ in range(self.student_steps - 1):
            yield (self.noise(),)

    def queries(self, batch):
        return sum(map(len, batch))

    def losses(self, noise, generator_noise=None):
        if generator_noise is not None:
            images = self.generator(generator_noise)
            self.train_generator({"generator": -dfad_loss(self.model(images), self.teacher(images))})
        with torch.no_grad():
            self.images = self.generator(noise)
            teacher_logits = self.teacher(self.images)
        return {"loss": dfad_loss(self.model(self.images), teacher_logits), **self.generator_terms}
