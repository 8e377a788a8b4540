"""The base class of attacks."""

from dataclasses import dataclass

import method
from method import Method
from method.release import LabelOnly
from utils.keys import key
from utils.metrics import accuracy, evaluate


class Attack(Method):
    """`self.model` is the student. `self.teacher(images)` returns the logits (N, C) that its release rule gives."""

    @dataclass
    class Params:
        teacher_model: str = key("architecture of the teacher")
        teacher_resume: str = key("checkpoint of the teacher: another experiment's best_model.tar")
        release: str = key("release rule of the teacher: logits, or the name of a defence", default="logits")
        answers: str = key(
            "what the student gets from the teacher: logits, or only the label (the most likely class)",
            default="logits",
            choices=("logits", "label"),
        )
        stored_answers_gib: float = key(
            "largest size, in GiB, of the answers that are stored beside the teacher's checkpoint for later students; "
            "0: answers are neither stored nor read. The key does not change results",
            default=2.0,
            low=0,
        )

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        network = zoo.frozen(params.teacher_model, params.teacher_resume)
        self.teacher = method.find_release(params.release)(network, params)
        self.teacher.prepare(zoo)
        if params.answers == "label":
            self.teacher = LabelOnly(self.teacher)

    def final(self, loader):
        """Return the accuracy "acc" and the cross-entropy "loss" of the student, and two more percentages of images.

        "agreement": student and teacher predict the same class. "teacher_acc": the teacher's answer is correct.
        """

        def compare(images, labels, logits):
            answers = self.teacher(images)
            return {"agreement": accuracy(logits, answers.argmax(1)), "teacher_acc": accuracy(answers, labels)}

        return evaluate(self.model, loader, compare)

    def queries(self, batch):
        return len(batch[0])
