"""Stored answers: a frozen teacher's answers to the batches of an epoch, computed once and read by later students.

Students with the same data set and seed see the same images in an epoch, so they get the same answers from a teacher.
The answers are stored beside the teacher's checkpoint, in answers/<digest>/epochN.tar. The digest covers all that the
answers depend on, including code. So a student that reads them has the same result, to the last bit, as a student whose
teacher computes them.
"""

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path

import torch
from torch import nn

from method.release import LabelOnly
from model import foreign
from utils import checkpoint, data
from utils.errors import UserError
from utils.paths import display_path, from_root

KEYS = ("teacher_model", "release", "dataset", "subset_percent", "validation", "seed", "batch_size", "augmentation")


def store_answers(attack, loader, environment, log):
    """Make the Attack `attack` read and write stored answers. Returns the loader to train it with.

    environment: text with versions, device, number of threads and precision, on which the last bits of answers depend.
    Nothing changes if `stored_answers_gib` is 0, if equal images may get different answers, or with `cuda_graph`,
    because a recorded step includes the teacher.
    """
    p = attack.params
    # `attack.teacher` is a release rule. LabelOnly wraps another rule, whose logits are stored.
    owner, attribute = (attack.teacher, "rule") if isinstance(attack.teacher, LabelOnly) else (attack, "teacher")
    rule = getattr(owner, attribute)
    if p.stored_answers_gib == 0 or p.cuda_graph or not rule.deterministic:
        return loader
    content = describe(rule, p, environment) | data.options_in(vars(p))
    if p.dataset == data.OWN:
        content["images"] = attack.zoo.origins[data.OWN]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    folder = from_root(p.teacher_resume).parent / "answers"
    answers = StoredAnswers(rule, folder, digest, p.stored_answers_gib * 2**30, log)
    setattr(owner, attribute, answers)
    return AnsweredLoader(loader, answers)


def describe(rule, params, environment):
    """What the answers of a release rule depend on, as a dictionary for JSON, except the files of the data set."""
    rule_keys = [field.name for field in dataclasses.fields(rule.Params)]
    networks = [
        checkpoint.weights_digest(part.state_dict()) for part in vars(rule).values() if isinstance(part, nn.Module)
    ]
    keys = {name: getattr(params, name) for name in (*KEYS, *rule_keys)}
    rule_name, code = type(rule).__qualname__, digest_of_code(rule)
    return keys | {"rule": rule_name, "networks": networks, "code": code, "environment": environment}


def digest_of_code(rule):
    """A digest of the source files that the answers of a release rule depend on.

    Of a network of other code, the file of its function is included, and files that this file imports are not.
    """
    root = Path(__file__).resolve().parent.parent
    shared = [file for folder in ("method", "model", "utils") for file in sorted(root.glob(f"{folder}/*.py"))]
    files = [Path(inspect.getfile(type(rule))), root / "training/zoo.py", *shared]
    others = [foreign.source(part.name) for part in vars(rule).values() if isinstance(part, foreign.Foreign)]
    return hashlib.sha256(b"".join([*(file.read_bytes() for file in files), *others])).hexdigest()


class StoredAnswers:
    """A release rule that reads the answers to the loader's current batch from a file, if there is one.

    For other images, and for features, it calls `rule`. At the end of an epoch the answers are written, if all batches
    were answered and all files in `folder` together take at most `limit` bytes.
    """

    def __init__(self, rule, folder, digest, limit, log):
        self.rule, self.teacher, self.params = rule, rule.teacher, rule.params
        self.folder, self.digest, self.limit, self.log = folder, digest, limit, log
        self.images = self.current = None  # images of the latest batch, and the answers to them
        self.stored, self.computed = None, []  # answers of this epoch: all from the file, or those computed so far
        self.first = 0  # images of this epoch before the latest batch

    def __call__(self, images, with_features=False):
        if with_features:
            return self.rule(images, with_features=True)
        if images is not self.images:
            return self.rule(images)
        if self.current is None:
            if self.stored is not None:
                self.current = self.stored[self.first : self.first + len(images)]
            else:
                self.current = self.rule(images)
                self.computed.append(self.current)
        return self.current

    def answer(self, logits):
        return self.rule.answer(logits)

    def batches(self, loader):
        """Yield the batches of `loader`. Calls with the images of the latest batch use or store answers."""
        self.stored, self.computed, self.first = self.read(loader), [], 0
        count = 0
        for images, labels in loader:
            self.images, self.current, count = images, None, count + 1
            yield images, labels
            self.first += len(images)
        self.images = self.current = None
        if len(self.computed) == count:
            self.write(loader.epoch, torch.cat(self.computed))

    def file(self, epoch):
        """The file with the answers of an epoch, counted from 0."""
        return self.folder / self.digest / f"epoch{epoch + 1:04}.tar"

    def read(self, loader):
        """The stored answers of the loader's epoch, (N, C) on the device of its images; None if there are none."""
        file = self.file(loader.epoch)
        if not file.exists():
            return None
        try:
            content = checkpoint.load(file)
            answers, size = content.get("answers"), len(loader.split)
            if content.get("digest") != self.digest or not torch.is_tensor(answers) or len(answers) != size:
                raise UserError(f"{display_path(file)}: has answers of another teacher, or to other images")
        except UserError as error:
            self.log(f"{error}; the teacher computes them instead")
            return None
        return answers.to(loader.split.labels.device)

    def write(self, epoch, answers):
        """Write answers (N, C), if the limit allows it. An error is logged and not raised."""
        size = answers.numel() * answers.element_size()
        file = self.file(epoch)
        try:
            if sum(path.stat().st_size for path in self.folder.rglob("*.tar")) + size > self.limit:
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            content = {"answers": answers.cpu(), "digest": self.digest}
            checkpoint.save(file, content, shared=True)  # other students may write the same answers
        except (OSError, UserError) as error:  # not fatal: later students compute the answers again
            self.log(f"Answers are not stored: {error}")


class AnsweredLoader:
    """A Loader whose batches are the `StoredAnswers.batches` of `loader`. Other attributes are those of `loader`."""

    def __init__(self, loader, answers):
        self.loader, self.answers = loader, answers

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return self.answers.batches(self.loader)
