"""A checkpoint of the user as a row of a benchmark: checked, scored, and copied to experiments/own/.

The name of the copy's folder contains the name of the file and a digest. The digest depends on the weights, on the name
of the network, and, for a network that is defined outside of this project, on the source file. The path of the copy is
a key of every student (`teacher_resume`), so students of different teachers never share a folder.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import model
from model import foreign
from study.tables import make_spec, read_target
from training import engine, params
from training.zoo import Zoo
from utils import checkpoint, data
from utils.errors import UserError
from utils.metrics import evaluate
from utils.paths import display_path, from_root, make_folder

FOLDER = "experiments/own"
CHECKED_IMAGES = 64  # number of test images for which the answers of a teacher are checked
NEAR_CHANCE = 2  # a teacher whose accuracy is below this multiple of chance gets a flag
PROBABILITIES = "the teacher answers with probabilities: their logarithms are used as logits"


@dataclass(frozen=True)
class OwnTeacher:
    """A row of a benchmark whose teacher is a checkpoint of the user."""

    name: str  # name of the row
    source: str  # path of the user's file
    network: str
    file: str  # path of the copy
    accuracy: float  # in percent, on the test images
    flags: tuple = ()

    def defence(self, template):
        """The row of a benchmark: an experiment of a student, and the keys to change in the student."""
        changes = {"teacher_model": self.network, "teacher_resume": self.file}
        return {"student": template["undefended"], "changes": changes, "source": f"{self.source}, {self.network}"}


def import_teacher(benchmark, file, network, data_dir, download=False):
    """Check the checkpoint `file`, copy and evaluate its network. Returns an OwnTeacher.

    benchmark: a name in experiments/tables.json. network: the name of a network in model/, or
    "package.module:function", or "path/file.py:function"; default: the name in the checkpoint, which must be a network
    in model/. Raises UserError if the teacher cannot be attacked.
    """
    student = params.check(make_spec(read_target(benchmark)["template"]["undefended"]).raw, benchmark)
    file = Path(file).resolve()
    content = checkpoint.load(file)
    trained_with = content.get("params") if isinstance(content.get("params"), dict) else {}
    given, network = network, foreign.canonical(network or str(trained_with.get("model_name", "")))
    if not network or (":" in network and not given):  # a checkpoint must not choose code to run
        raise UserError(f"--teacher {display_path(file)}: does not say which network it holds; name it with --model")
    device = engine.pick_device()
    dataset = data.load(student.dataset, data_dir, device, download=download, **data.options_in(vars(student)))
    options = model.options_in(trained_with, network)
    module = Zoo(dataset.spec, device).without_weights(network, options, file)
    checkpoint.load_weights(module, content, file)
    module.to(device).eval()
    images = next(iter(dataset.test_loader(CHECKED_IMAGES)))[0]
    flags = []
    if returns_probabilities(checked_answers(module, images, dataset.name)):
        options["probabilities"] = True
        flags.append(PROBABILITIES)
    copy = write_copy(file, network, module, options)
    bf16 = engine.resolve_precision(student.precision, device) == "bf16"
    accuracy = evaluate(Zoo(dataset.spec, device, bf16).frozen(network, copy), dataset.test_loader())["acc"]
    if accuracy < NEAR_CHANCE * 100 / dataset.spec.num_classes:
        flags.append(f"the teacher is hardly better than a guess ({accuracy:.1f} %): check its images and classes")
    return OwnTeacher(row_name(file), display_path(file), network, copy, accuracy, tuple(flags))


@torch.no_grad()
def checked_answers(network, images, dataset):
    """The answers (N, C) of a network to images (N, 3, H, W).

    Raises UserError if the network fails or gives answers of another shape, if an answer is not finite, or if an answer
    depends on the other images of the batch. dataset: the name of the data set, for messages.
    """
    name, expected = getattr(network, "name", type(network).__name__), (len(images), network.num_classes)
    try:
        answers = network(images)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        size = "x".join(map(str, images.shape[1:]))
        raise UserError(f"{name}: fails for images of {size}: {foreign.one_line(error)}") from None
    if tuple(answers.shape) != expected:
        reason = f"{dataset} has {network.num_classes} classes"
        raise UserError(f"{name}: answers of shape {tuple(answers.shape)}, not {expected}: {reason}")
    if not torch.isfinite(answers).all():
        raise UserError(f"{name}: some answers are NaN or infinite")
    half = network(images[::2])
    if not torch.allclose(half, answers[::2], rtol=1e-2, atol=1e-2 * answers.abs().max().item()):
        problem = "answers an image differently in another batch, so a part of the network is random or in train mode"
        raise UserError(f"{name}: {problem}; its function must return a module whose eval mode is deterministic")
    return answers


def returns_probabilities(answers):
    """Whether answers (N, C) are probabilities: none below 0, and each row sums to 1."""
    return bool((answers >= 0).all() and (answers.sum(1) - 1).abs().max() < 1e-2)


def write_copy(file, network, module, options):
    """Write the weights of `module` to the folder of this teacher, unless the file exists. Returns its path.

    file: path of the user's file. network: name of the network. options: constructor arguments to store.
    """
    weights = {name: weight.cpu() for name, weight in module.state_dict().items()}
    identity = [network, checkpoint.weights_digest(weights)]
    if ":" in network:
        identity.append(hashlib.sha256(foreign.source(network)).hexdigest())
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    path = f"{FOLDER}/{row_name(file)}-{digest}/teacher.tar"
    if not from_root(path).is_file():
        make_folder(from_root(path).parent)
        content = {"state_dict": weights, "params": {"model_name": network} | options, "source": display_path(file)}
        checkpoint.save(from_root(path), content, shared=True)  # another process may import the same teacher
    return path


def row_name(file):
    """The name of the row of a file: "mine" for mine.pt, or the folder of a best_model.tar or last_model.tar."""
    name = file.parent.name if file.stem in ("best_model", "last_model") else file.stem
    return re.sub(r"[^\w.-]+", "-", name)
