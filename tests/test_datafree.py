"""DAFL, DFAD and DeepInversion: equations in float64, and runs, which must not read a training image."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from projects import experiment, metrics, same_weights, script, with_teacher
from test_losses import LABELS, check, logits, softmax, written_ce
from test_methods import SMALL
from torch import nn

import method
import model
from method import inversion
from method.attack import deepinversion
from method.attack.dafl import dafl_loss
from method.attack.dfad import dfad_loss
from model.generator import Generator
from training import engine, params
from training.zoo import Zoo
from utils import checkpoint, data
from utils.epochs import seed_everything
from utils.errors import UserError

NAMES = ["dafl", "dfad", "deepinversion"]
RUNS = {name: {"method": name, "grid_every": 2} | SMALL[name] for name in NAMES}
RUNS["deepinversion"] |= {"image_batches": 5, "new_batches": 2}
RUNS["adaptive"] = RUNS["deepinversion"] | {"a_c": 1.0}
WEIGHTS = {"dafl": "a_oh a_ie a_act", "deepinversion": "a_tv a_l2 a_f a_c"}


# The equations


def test_dafl_loss():
    def written(features, rows):
        mean = [sum(column) / len(rows) for column in zip(*(softmax(row, 1) for row in rows), strict=True)]
        one_hot = written_ce(rows, [row.index(max(row)) for row in rows])
        entropy = sum(p * math.log10(p) for p in mean)
        activation = -sum(map(abs, itertools.chain(*features))) / (len(features) * len(features[0]))
        return 0.3 * one_hot + 5 * entropy + 0.1 * activation, one_hot, entropy, activation

    features, rows = logits(0, classes=3), logits(1)
    for index in range(4):
        used = [features, rows] if index in (0, 3) else [features.detach(), rows]
        if index == 3:
            used[1] = rows.detach()
        check(dafl_loss(*used, 0.3, 5, 0.1)[index], lambda *lists, i=index: written(*lists)[i], *used)


def test_dafl_entropy_survives_a_class_of_no_image():
    rows = torch.tensor([[200.0, 0.0], [300.0, 0.0]], requires_grad=True)
    loss = dafl_loss(torch.ones(2, 3), rows, 1, 1, 1)[0]
    assert loss.isfinite() and torch.autograd.grad(loss, rows)[0].isfinite().all()


def test_dfad_loss():
    def written(own, teacher):
        pairs = zip(itertools.chain(*own), itertools.chain(*teacher), strict=True)
        return sum(abs(a - b) for a, b in pairs) / (len(own) * len(own[0]))

    own, teacher = logits(0), logits(1)
    check(dfad_loss(own, teacher), written, own, teacher)
    withheld = torch.full((5, 1), -1e9, dtype=torch.float64)
    silent = torch.cat((teacher, withheld), 1)
    torch.testing.assert_close(dfad_loss(torch.cat((own, withheld * 0), 1), silent), dfad_loss(own, teacher))


def norm(values):
    return math.sqrt(sum(value**2 for value in values))


def written_tv(x, neighbours=((0, 1), (1, 0), (-1, 1), (1, 1))):
    total, size = 0.0, len(x[0][0])
    for down, right in neighbours:
        inside = [(i, j) for i in range(size) for j in range(size) if 0 <= i + down < size and j + right < size]
        total += norm(p[i][j] - p[i + down][j + right] for image in x for p in image for i, j in inside)
    return total


def written_js(own, other, T):
    total = 0.0
    for p, q in zip((softmax(row, T) for row in own), (softmax(row, T) for row in other), strict=True):
        for a, b in zip(p, q, strict=True):
            total += (a * math.log(2 * a / (a + b)) + b * math.log(2 * b / (a + b))) / 2 / len(own)
    return total


def written_distance(x, mean, variance):
    means, variances = [], []
    for channel in zip(*x, strict=True):
        values = [value for rows in channel for row in rows for value in row]
        means.append(sum(values) / len(values))
        variances.append(sum((value - means[-1]) ** 2 for value in values) / len(values))
    return norm(map(float.__sub__, means, mean)) + norm(map(float.__sub__, variances, variance))


@pytest.mark.parametrize("adaptive", [False, True])
def test_inversion_loss(adaptive):
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own, teacher = logits(0), logits(1)
    bn = torch.tensor(3.0, dtype=torch.float64)
    terms = inversion.inversion_loss(x, LABELS, teacher, bn, own if adaptive else None, 0.1, 0.2, 10.0, 0.5, 3.0)
    written = {
        "ce": written_ce(teacher.tolist(), LABELS.tolist()),
        "tv": written_tv(x.tolist()),
        "l2": norm(x.flatten().tolist()),
        "bn": 3.0,
    }
    total = written["ce"] + 0.1 * written["tv"] + 0.2 * written["l2"] + 10 * written["bn"]
    if adaptive:
        written["js"] = written_js(own.tolist(), teacher.tolist(), 3.0)
        total += 0.5 * (1 - written["js"])
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(written | {"inversion": total})
    assert all(value.dtype == torch.float64 for value in terms.values())


def test_jensen_shannon():
    own, other = logits(0), logits(1)
    check(inversion.jensen_shannon(own, other, 3.0), lambda p, q: written_js(p, q, 3.0), own, other)
    certain = torch.tensor([[900.0, 0.0]], dtype=torch.float64)
    assert inversion.jensen_shannon(certain, certain.flip(1), 1.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("flat", [False, True], ids=["BatchNorm2d", "BatchNorm1d"])
def test_distance_of_statistics(flat):
    x = torch.randn((5, 2) if flat else (5, 2, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(2).double().eval()
    layer.running_mean += torch.tensor([0.5, -1.0])
    layer.running_var += torch.tensor([0.1, 2.0])
    with inversion.batch_norm_distances(nn.Sequential(nn.Identity(), layer)) as found:
        layer(x)
    lists = (x[..., None, None] if flat else x).tolist()
    written = written_distance(lists, layer.running_mean.tolist(), layer.running_var.tolist())
    assert found[0].item() == pytest.approx(written, rel=1e-12)


# The images


def test_inversion_lowers_its_loss_and_removes_its_hooks():
    torch.manual_seed(0)
    network = model.build("net", 10, num_channels=4)
    for _ in range(30):
        network(torch.rand(64, 3, 1, 1) * torch.randn(3, 32, 32))
    network.eval().requires_grad_(False)
    labels = torch.arange(8)
    made = [inversion.invert(network, labels, 32, steps=steps, learning_rate=0.1, seed=1) for steps in (1, 60, 60)]
    assert torch.equal(made[1][0], made[2][0]) and made[1][0].shape == (8, 3, 32, 32)
    assert not made[1][0].requires_grad and made[1][1]["inversion"] < made[0][1]["inversion"] / 2
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in network.modules())
    with pytest.raises(IndexError):
        inversion.invert(network, labels + 5, 32, steps=1)
    assert not any(layer._forward_pre_hooks for layer in network.modules())


@pytest.mark.parametrize(("keys", "flip"), [({}, False), ({"flip": 1}, True)], ids=["default", "flip"])
def test_images_are_flipped_only_where_the_key_says_so(keys, flip, trained):
    """The released script for CIFAR shifts images and does not flip them."""
    learner = build(trained, "deepinversion", **keys)
    learner.zoo.spec = data.DATASETS["cifar10"]
    assert learner.settings()["flip"] is flip
    never = inversion.shift_and_flip(32, torch.zeros(9, 2, dtype=torch.int64), torch.zeros(9, dtype=torch.bool))[1]
    assert torch.equal(never, torch.arange(32).expand(9, 32))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("bf16", [False, True])
def test_generator_emits_normalised_images(size, bf16):
    generator = Generator(size, 100, 8).to(memory_format=torch.channels_last)
    generator.bf16 = bf16
    images = generator(torch.randn(16, 100))
    assert images.shape == (16, 3, size, size) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.var((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_generator_is_the_published_one():
    linear, first = 1000 * 128 * 64 + 128 * 64, 2 * 128
    convolutions = (128 * 128 * 9 + 128 + 2 * 128) + (128 * 64 * 9 + 64 + 2 * 64) + (64 * 3 * 9 + 3)
    assert sum(p.numel() for p in Generator(32, 1000).parameters()) == linear + first + convolutions


@pytest.mark.parametrize(("run", "eps"), [("dafl", 0.8), ("dfad", 1e-5)])
def test_generator_has_the_released_eps(run, eps, trained):
    """The batch norms after the first two convolutions have the released eps. The other two have the default."""
    norms = [part.eps for part in build(trained, run).generator.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms == [1e-5, eps, eps, 1e-5]


def test_generator_that_does_not_fit_the_image_size():
    with pytest.raises(UserError, match="needs an image size that is divisible by 4, not 30"):
        Generator(30, 100)


# Runs


class Unread(torch.Tensor):
    """A tensor whose values cannot be read, only its shape and device."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.device.__get__, torch.Tensor.__len__):
            return super().__torch_function__(function, types, args, kwargs or {})
        raise AssertionError(f"{function} of the training set")


def hide_training_images(monkeypatch):
    """Make every run fail that reads the training set."""
    honest = data.Dataset.train_loader

    def train_loader(self, *arguments, **options):
        hidden = data.Split(self.train.images.as_subclass(Unread), self.train.labels.as_subclass(Unread))
        return honest(dataclasses.replace(self, train=hidden), *arguments, **options)

    monkeypatch.setattr(data.Dataset, "train_loader", train_loader)


def student(folder, trained, run, **changes):
    """Make the experiment of a data-free student with the teacher of `trained`."""
    teacher = with_teacher(trained / "baseline/teacher", temperature=None, alpha=None)
    return experiment(folder, **(teacher | {"num_epochs": 3} | RUNS[run] | changes))


def train(folder):
    done = script("train_kd.py", "--save_path", folder)
    assert done.status == 0, done.err
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory, trained):
    """Each run without an interruption, and without reading a training image."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        hide_training_images(monkeypatch)
        for run in RUNS:
            train(student(root / run, trained, run))
    return root


def same_run(folder, other):
    assert metrics(folder) == metrics(other)
    return all(same_weights(folder / name, other / name) for name in ("last_model.tar", "best_model.tar"))


def test_that_reading_a_training_image_is_noticed(trained, tmp_path, monkeypatch):
    hide_training_images(monkeypatch)
    with pytest.raises(AssertionError, match="of the training set"):
        script("train_kd.py", "--save_path", experiment(tmp_path / "x", **with_teacher(trained / "baseline/teacher")))


def test_images_that_depend_on_the_student_after_a_resume(trained, whole, tmp_path):
    """The other attacks are resumed in test_cuda_graph.py::test_every_method."""
    folder = student(tmp_path / "x", trained, "adaptive")
    raw = json.loads((folder / "params.json").read_text())
    for length in (1, 2, 3):
        (folder / "params.json").write_text(json.dumps(raw | {"num_epochs": length}))
        train(folder)
    assert same_run(folder, whole / "adaptive")


@pytest.mark.parametrize("run", ["deepinversion", "adaptive"])
def test_images_survive_an_interruption(run, trained, whole, tmp_path, monkeypatch):
    """The run is stopped while it makes the second batch of epoch 2. The three earlier batches are not made again."""
    folder, honest, calls = student(tmp_path / "x", trained, run), deepinversion.invert, []

    def cut(*arguments, **options):
        calls.append(options)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(*arguments, **options)

    monkeypatch.setattr(deepinversion, "invert", cut)
    assert script("train_kd.py", "--save_path", folder).status == 130
    assert sorted(path.name for path in (folder / "images").glob("*.tar")) == ["0000.tar", "0001.tar", "0002.tar"]
    train(folder)
    assert len(calls) == 6 and same_run(folder, whole / run)


def test_images_that_are_lost_are_made_again_if_they_can_be(trained, tmp_path):
    for run, status in (("deepinversion", 0), ("adaptive", 2)):
        folder = student(tmp_path / run, trained, run, num_epochs=2)
        train(folder)
        before = torch.load(folder / "images/0001.tar")
        (folder / "images/0001.tar").unlink()
        raw = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps(raw | {"num_epochs": 3}))
        done = script("train_kd.py", "--save_path", folder)
        assert done.status == status, done.err
        if status:
            assert "images/0001.tar is missing" in done.err and len(done.err.splitlines()) == 1
        else:
            assert torch.equal(torch.load(folder / "images/0001.tar")["images"], before["images"])


def test_images_of_other_parameters_are_not_used(trained, whole, tmp_path):
    folder = student(tmp_path / "x", trained, "deepinversion", a_f=1.0, num_epochs=1)
    train(folder)
    for path in folder.glob("*.tar"):
        path.unlink()
    student(tmp_path / "y", trained, "deepinversion")
    (tmp_path / "y/params.json").replace(folder / "params.json")
    train(folder)
    assert same_run(folder, whole / "deepinversion")


@pytest.mark.parametrize("run", RUNS)
def test_grids_and_hidden_training_images_change_nothing(run, trained, whole, tmp_path):
    folder = student(tmp_path / "x", trained, run, grid_every=0)
    train(folder)
    assert not list(folder.rglob("*.png"))
    assert same_run(folder, whole / run)
    assert sorted(path.name for path in (whole / run).rglob("*.png")) == ["epoch0002.png", "epoch0003.png"]
    assert not list((whole / run).rglob("*.tmp"))


@pytest.mark.parametrize("run", RUNS)
def test_every_term_is_logged(run, whole):
    terms = {"dafl": {"generator", "one_hot", "entropy", "activation"}, "dfad": {"generator"}}
    for line in metrics(whole / run):
        assert line["train"].keys() == {"loss"} | terms.get(run, set())


@pytest.mark.parametrize("run", ["deepinversion", "adaptive"])
def test_terms_of_an_inversion_are_in_the_log_and_beside_the_images(run, whole):
    inverted = ["inversion", "ce", "tv", "l2", "bn"] + ["js"] * (run == "adaptive")
    log = (whole / run / "training.log").read_text()
    for number in range(5):
        terms = torch.load(whole / run / f"images/{number:04}.tar", weights_only=True)["terms"]
        assert list(terms) == inverted
        line = " ; ".join(f"{name}: {value:.4g}" for name, value in terms.items())
        assert log.count(f"Images {number + 1}/5: {line}\n") == 1


def build(trained, run, **changes):
    raw = experiment_keys(trained, run) | changes
    checked = params.check(raw, "params.json")
    seed_everything(0, epoch=-1)
    return method.find(raw["method"])(checked, Zoo(data.DATASETS["digits"], torch.device("cpu")))


def experiment_keys(trained, run):
    teacher = json.loads((trained / "kd_normal/student/params.json").read_text())
    return {name: value for name, value in teacher.items() if name not in ("temperature", "alpha")} | RUNS[run]


@pytest.mark.parametrize(("run", "steps"), [("dafl", [3, 3, 3]), ("dfad", [6, 6, 6]), ("deepinversion", [2, 4, 5])])
def test_steps_and_images_are_counted(run, steps, trained, monkeypatch):
    learner, totals = build(trained, run), []
    optimizer = engine.make_optimizer(learner.params, learner.model)
    loader = data.load("digits", "", torch.device("cpu")).train_loader(16)
    honest = engine.tqdm
    monkeypatch.setattr(engine, "tqdm", lambda **options: totals.append(options["total"]) or honest(**options))
    for epoch, count in enumerate(steps):
        loader.set_epoch(epoch)
        assert engine.train_epoch(learner, learner.losses, loader, optimizer, "")[0].images == 16 * count
    assert totals == steps


@pytest.mark.parametrize("run", ["dafl", "dfad"])
def test_the_generator_learns_with_a_schedule_of_its_own(run, trained):
    """One step of the generator changes only its weights, in the direction that lowers its loss."""
    learner = build(trained, run, schedule=[2], generator_learning_rate=1e-4)
    student, teacher, own = ([p.clone() for p in n.parameters()] for n in networks(learner))
    losses = []
    for _ in range(30):
        torch.manual_seed(1)
        learner.losses(*next(iter(learner.epoch_batches(0))))
        losses.append(float(learner.generator_terms["generator"]))
    assert losses[-1] < losses[0]
    after = [list(network.parameters()) for network in networks(learner)]
    assert all(map(torch.equal, student, after[0])) and all(map(torch.equal, teacher, after[1]))
    assert not all(map(torch.equal, own, after[2]))
    assert all(p.grad is None for p in after[0] + after[1])
    rates = []
    for epoch in (1, 2):
        next(iter(learner.epoch_batches(epoch)))
        rates.append(learner.generator_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4, 1e-4 * {"dafl": 1.0, "dfad": 0.1}[run]])


def networks(learner):
    return learner.model, learner.teacher.teacher, learner.generator


@pytest.mark.parametrize("run", RUNS)
def test_against_a_teacher_that_withholds_logits(run, trained):
    learner = build(trained, run, release="stingy", rho=0.2)
    optimizer = engine.make_optimizer(learner.params, learner.model)
    loader = data.load("digits", "", torch.device("cpu")).train_loader(16)
    means = engine.train_epoch(learner, learner.losses, loader, optimizer, "")[0].values()
    assert all(abs(value) < 1e5 for value in means.values())


# Bad input


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in WEIGHTS for key in WEIGHTS[name].split()])
def test_negative_weights(name, key, trained):
    with pytest.raises(UserError, match=f'"{key}": must be at least 0, not -1'):
        build(trained, name, **{key: -1})


@pytest.mark.parametrize("run", RUNS)
def test_batch_of_one_image(run, trained, tmp_path):
    done = script("train_kd.py", "--save_path", student(tmp_path / "x", trained, run, batch_size=1))
    assert done.status == 2 and '"batch_size": must be at least 2' in done.err and len(done.err.splitlines()) == 1


def test_teacher_without_batch_norm(trained, tmp_path):
    (tmp_path / "teacher").mkdir()
    checkpoint.save(tmp_path / "teacher/best_model.tar", {"state_dict": model.build("mlp", 10).state_dict()})
    folder = student(tmp_path / "x", trained, "deepinversion", teacher_model="mlp",
                     teacher_resume=str(tmp_path / "teacher/best_model.tar"))  # fmt: skip
    done = script("train_kd.py", "--save_path", folder)
    assert done.status == 2 and "no batch norm" in done.err and len(done.err.splitlines()) == 1


def test_several_processes(trained, monkeypatch):
    monkeypatch.setattr("utils.distributed.WORLD_SIZE", 2)
    with pytest.raises(UserError, match='"dafl" cannot train with several processes'):
        build(trained, "dafl")
