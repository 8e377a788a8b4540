"""What all attacks share: a student, and a teacher that answers as its release rule says."""

from dataclasses import dataclass

import method
from method import Method
from utils.keys import key


class Attack(Method):
    """`self.model` is the student; `self.teacher(images)` are the teacher's answers, logits (N, C)."""

    @dataclass
    class Params:
        teacher_model: str = key("architecture of the teacher")
        teacher_resume: str = key("its checkpoint: another experiment's best_model.tar")
        release: str = key("how the teacher answers: logits, or the rule of a defence", default="logits")

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        network = zoo.frozen(params.teacher_model, params.teacher_resume)
        self.teacher = method.find_release(params.release)(network, params)
        self.teacher.prepare(zoo)
