"""fast_datafree: the equation in float64, the images, and interrupted runs."""

import copy
import json
import math

import pytest
import torch
from projects import experiment, metrics, same_weights, script
from test_losses import LABELS, check, logits, softmax, written_ce
from test_methods import DIGITS, SMALL

from method.inversion import batch_norm_distances as distances
from method.meta_generator import TERMS, meta_optimizer, synthesis_loss, synthesise
from model.generator import Generator
from training.zoo import Zoo
from utils import checkpoint, data

OWN = {"method": "fast_datafree", "grid_every": 2, "teacher_model": "net"} | SMALL["fast_datafree"]
RATES = {"learning_rate": 0.003, "noise_learning_rate": 0.01}
WEIGHTS = {"a_bn": 10.0, "a_oh": 0.5, "a_adv": 1.33}


def test_synthesis_loss():
    def written(teacher, student):
        adversarial = 0.0
        for t, s in zip(teacher, student, strict=True):
            if t.index(max(t)) == s.index(max(s)):
                pairs = zip(softmax(t, 1), softmax(s, 1), strict=True)
                adversarial += sum(p * math.log(p / q) for p, q in pairs) / len(teacher)
        return 30.0 + 0.5 * written_ce(teacher, LABELS.tolist()) - 1.33 * adversarial

    teacher, student = logits(0), logits(1)
    with torch.no_grad():
        student[:2] = 0.5 * teacher[:2]
    assert (teacher.argmax(1) == student.argmax(1)).tolist() == [True, True, True, False, False]
    loss, one_hot, adversarial = synthesis_loss(teacher, student, LABELS, torch.tensor(3.0).double(), 10.0, 0.5, 1.33)
    check(loss, written, teacher, student)
    assert loss.item() == pytest.approx(30 + (0.5 * one_hot - 1.33 * adversarial).item())


@pytest.fixture
def parts():
    """Small (G, teacher, student, z, labels)."""
    torch.manual_seed(0)
    zoo = Zoo(DIGITS, torch.device("cpu"))
    teacher, student = (zoo.freeze(zoo.fresh("net", num_channels=4)) for _ in range(2))
    return Generator(32, 8, 4), teacher, student, torch.randn(16, 8), torch.arange(16) % 10


def test_one_step_is_a_step_on_the_loss(parts):
    """With k = 1, G makes a step of Adam on L(G(z)). The images are those of G before this step."""
    generator, teacher, student, z, labels = parts
    plain = copy.deepcopy(generator)
    images, values = synthesise(
        generator, meta_optimizer(generator, 0.003, 1), teacher, student, z, labels, steps=1, **RATES, **WEIGHTS
    )
    optimizer = meta_optimizer(plain, 0.003, 1)
    with distances(teacher) as found:
        expected = plain(z)
        loss = synthesis_loss(teacher(expected), student(expected), labels, sum(found), *WEIGHTS.values())[0]
    loss.backward()
    optimizer.step()
    assert torch.equal(images, expected) and values[0] == loss and len(values) == len(TERMS)
    assert all(map(torch.equal, generator.parameters(), plain.parameters()))


def test_the_generator_steps_along_the_sum_of_the_copys_gradients(parts):
    generator, teacher, student, z, labels = parts
    start, before = copy.deepcopy(generator), [w.clone() for w in generator.parameters()]
    optimizer = torch.optim.SGD(generator.parameters(), 1.0)  # with this optimizer the step is the gradient
    images, _ = synthesise(generator, optimizer, teacher, student, z, labels, steps=3, **RATES, **WEIGHTS)
    own, noise = start, z.clone().requires_grad_()
    inner = torch.optim.Adam([{"params": list(own.parameters())}, {"params": [noise], "lr": 0.01}], 0.003, (0.5, 0.999))
    totals, losses, made = [0.0] * len(before), [], []
    for _ in range(3):
        with distances(teacher) as found:
            made.append(own(noise))
            loss = synthesis_loss(teacher(made[-1]), student(made[-1]), labels, sum(found), *WEIGHTS.values())[0]
        inner.zero_grad()
        loss.backward()
        totals = [total + w.grad for total, w in zip(totals, own.parameters(), strict=True)]
        inner.step()
        losses.append(loss.item())
    for old, new, total in zip(before, generator.parameters(), totals, strict=True):
        torch.testing.assert_close(old - new, total, rtol=1e-4, atol=1e-5)
    assert losses[2] < losses[0]
    assert torch.equal(images, made[losses.index(min(losses))])
    assert all(w.grad is None for network in (teacher, student) for w in network.parameters())


def make(folder, trained, **changes):
    teacher = str(trained / "baseline/teacher/best_model.tar")
    return experiment(folder, **(OWN | {"teacher_resume": teacher, "num_epochs": 3} | changes))


def train(folder, status=0):
    done = script("train_kd.py", "--save_path", folder)
    assert done.status == status, done.err
    return done


def pool(folder):
    return {path.name: torch.load(path)["images"] for path in sorted((folder / "images").glob("*.tar"))}


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("fast") / "x", trained)
    train(folder)
    return folder


def test_images_are_kept_and_every_term_is_logged(whole):
    images = pool(whole)
    assert list(images) == [f"{number:04}.tar" for number in range(2 + 3 * 2)]
    assert all(batch.shape == (16, 32, 32, 3) and batch.dtype == torch.float16 for batch in images.values())
    for line in metrics(whole):
        assert line["train"].keys() == {"loss", *TERMS}
    assert sorted(path.name for path in whole.rglob("*.png")) == ["epoch0002.png", "epoch0003.png"]


def test_cut_and_continued_it_makes_the_same_images(whole, trained, tmp_path):
    folder = make(tmp_path / "x", trained, num_epochs=1)
    train(folder)
    for path in ("0002", "0003"):
        # Left by an epoch that was killed
        torch.save({"images": torch.zeros(1)}, folder / f"images/{int(path) + 2:04}.tar")
    (folder / "params.json").write_text((whole / "params.json").read_text())
    train(folder)
    assert same_weights(folder / "last_model.tar", whole / "last_model.tar") and metrics(folder) == metrics(whole)
    for (name, one), (other_name, other) in zip(pool(folder).items(), pool(whole).items(), strict=True):
        assert name == other_name and torch.equal(one, other)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other run"])
def test_images_that_cannot_be_used(damage, trained, tmp_path):
    folder = make(tmp_path / "x", trained, num_epochs=1)
    train(folder)
    file = folder / "images/0001.tar"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    else:
        checkpoint.save(file, torch.load(file) | {"made_from": {"seed": 9}})
    raw = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(raw | {"num_epochs": 2}))
    error = train(folder, status=2).err
    assert "images/0001.tar" in error and "move the *.tar files away" in error and len(error.splitlines()) == 1


def test_a_run_without_training_images(trained, tmp_path, monkeypatch):
    """The attack reads only `loader.epoch`. Training images would be uint8; the images of the attack are half."""
    folder = make(tmp_path / "x", trained, num_epochs=1)
    honest = data.Loader.__iter__

    def guarded(self):
        assert not (self.shuffle and self.split.images.dtype == torch.uint8), "a training image is read"
        return honest(self)

    monkeypatch.setattr(data.Loader, "__iter__", guarded)
    train(folder)


BAD = {"a_bn": -1, "a_oh": -1, "a_adv": -1, "student_steps": 0, "generator_steps": 0, "warm_up_rounds": -1}
BAD |= {"rounds_per_epoch": 0, "batch_size": 1, "noise_learning_rate": 0, "generator_learning_rate": 0}


@pytest.mark.parametrize("key", BAD)
def test_bad_values(key, trained, tmp_path):
    error = train(make(tmp_path / "x", trained, **{key: BAD[key]}), status=2).err
    assert f'"{key}": must be ' in error and len(error.splitlines()) == 1


def test_a_teacher_without_batch_norm(trained, tmp_path):
    error = train(make(tmp_path / "x", trained, teacher_model="mlp"), status=2).err
    assert '"teacher_model": mlp has no batch norm' in error and len(error.splitlines()) == 1
