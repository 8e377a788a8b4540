"""A sequence of students, each of which teaches the next: after SCM, Jandial et al., ECCV 2022.

    min_{s_1 … s_G}  Σ_g  α T² KL( σ_T(sg[s_{g−1}(x)]) ‖ σ_T(s_g(x)) ) + (1 − α) CE(σ(s_g(x)), y),   s_0 = t

s_g  the students, trained; all of one architecture     σ_T  softmax(·/T)
t    the teacher, frozen                                T    temperature
y    the label                                          α    weight of the distillation term
G    `generations`                                      sg   stops the gradient

In the evaluation, `acc` and `loss` are those of s_G, so that they can be compared with every other attack.
`acc_ensemble` is the accuracy of the mean of the probabilities of all students. An ensemble gains accuracy even without
a teacher, so compare `acc_ensemble` with other ensembles only. The checkpoint is that of s_G, with the other students
under "extra".

The paper's equations are not public. The only public implementation, by the GitHub user edaylmz, is unofficial. It
first trains a network with the nasty loss and the nasty teacher as adversarial network. Here this step is an experiment
of the method nasty, `CIFAR10/kd_nastier_resnet18`. Then each network teaches the next one, and the ensemble predicts.
OURS: the equation, and that all students train at the same time. In each step s_g learns from the current s_{g−1},
which is in train mode. So each student is trained for the whole schedule, and a run costs G times as much as one
student.
"""

from dataclasses import dataclass

import torch
from torch import nn

from method.attack.kd import KD, kd_loss
from utils.keys import key
from utils.metrics import accuracy, evaluate


def scm_loss(students_logits, teacher_logits, labels, T, alpha):
    """(loss, T² KL, cross-entropy), each summed over the students. students_logits: s_1 … s_G, each (N, C)."""
    teachers = [teacher_logits, *(logits.detach() for logits in students_logits[:-1])]
    terms = [kd_loss(s, t, labels, T, alpha) for s, t in zip(students_logits, teachers, strict=True)]
    return tuple(sum(values) for values in zip(*terms, strict=True))


class SCM(KD):
    @dataclass
    class Params(KD.Params):
        generations: int = key("G, number of students in the sequence", default=3, low=1)

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        self.earlier = nn.ModuleList(zoo.trained(params) for _ in range(params.generations - 1))
        self.students = nn.ModuleList([*self.earlier, self.model])

    @property
    def trained(self):
        return self.students

    def losses(self, images, labels):
        T, alpha = self.params.temperature, self.params.alpha
        students_logits = [student(images) for student in self.students]
        loss, distillation, ce = scm_loss(students_logits, self.teacher(images), labels, T, alpha)
        return {"loss": loss, "distillation": distillation, "ce": ce}

    def evaluate(self, loader):
        self.earlier.eval()
        return evaluate(self.model, loader, self.ensemble)

    def ensemble(self, images, labels, logits):
        all_logits = [logits, *(student(images) for student in self.earlier)]
        mean = torch.stack([student_logits.softmax(1) for student_logits in all_logits]).mean(0)
        return {"acc_ensemble": accuracy(mean, labels)}

    def extra(self):
        return {"earlier": self.earlier}
