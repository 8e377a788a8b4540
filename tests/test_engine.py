"""Schedule, seeds, means, accuracy, precision, and the stop at NaN."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from projects import ROOT, experiment, files, metrics, same_weights, script, train, weights
from torch import nn

from method import Method
from training import engine
from training.zoo import Zoo
from utils import data, environment, losses
from utils.epochs import get_lr, seed_everything
from utils.errors import Diverged, UserError
from utils.metrics import Means, evaluate

SCHEDULES = sorted(
    {
        (raw["learning_rate"], tuple(raw["schedule"]), raw["gamma"], raw["num_epochs"])
        for raw in (json.loads(path.read_text()) for path in (ROOT / "experiments").rglob("params.json"))
    }
)


@pytest.mark.parametrize("setting", SCHEDULES, ids=str)
def test_learning_rate_is_multisteplrs(setting):
    rate, schedule, gamma, epochs = setting
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, schedule, gamma)
    for epoch in range(epochs + 1):
        assert get_lr(rate, schedule, gamma, epoch) == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        reference.step()


def test_the_rate_of_the_schedule_is_the_optimizers(tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=3, schedule=[1, 2], learning_rate=0.5, optimizer="sgd")
    train(folder)
    assert [line["lr"] for line in metrics(folder)] == pytest.approx([0.5, 0.05, 0.005])
    group = torch.load(folder / "last_model.tar", weights_only=True)["optim_dict"]["param_groups"][0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (pytest.approx(0.005), 0.9, 5e-4)


def draw(seed, epoch):
    seed_everything(seed, epoch)
    return torch.rand(4).tolist()


def test_randomness_is_a_function_of_seed_and_epoch():
    draws = {(seed, epoch): draw(seed, epoch) for seed in (0, 1, 2, 10**12) for epoch in (-1, 0, 1, 2)}
    assert len(set(map(tuple, draws.values()))) == len(draws)
    assert all(draw(*which) == drawn for which, drawn in draws.items())


def split(count, batch_size, image_size=4):
    """A loader of `count` images. The pixels of image i have the value i, and its class is i % 3."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, image_size, image_size, 3)
    spec = data.DataSpec(3, image_size, count, count, (0.0,) * 3, (1 / 255,) * 3, ())
    return data.Loader(data.Split(images.contiguous(), torch.arange(count) % 3), spec, batch_size)


class Answers(nn.Module):
    """A network that predicts class 0 for images with a number below `limit`, and the right class for others."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, images):
        number = images[:, 0, 0, 0].round().long()
        return 4.0 * nn.functional.one_hot(torch.where(number < self.limit, 0, number % 3), 3)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 100])
def test_accuracy_counts_images_not_batches(batch_size):
    """In batches of 3, image 9 of 10 is alone in the last batch. Of the images below `limit`, 0, 3 and 6 are right."""
    scores = evaluate(Answers(8), split(10, batch_size))
    assert scores["acc"] == pytest.approx(100 * 5 / 10, abs=1e-9)
    right, wrong = (torch.logsumexp(torch.tensor([4.0, 0, 0]), 0) - logit for logit in (4, 0))
    assert scores["loss"] == pytest.approx(float(5 * right + 5 * wrong) / 10, rel=1e-6)


def test_score_uses_eval_mode_and_no_gradient():
    class Probe(Answers):
        def forward(self, images):
            assert not self.training and not torch.is_grad_enabled()
            return super().forward(images)

    evaluate(Probe(8), split(10, 3))


class Toy(Method):
    """The loss is the mean image number times a weight that starts at 1. `spoil` replaces the loss of one step."""

    def __init__(self, spoil=None, at=1):
        self.model, self.step, self.spoil, self.at = nn.Linear(1, 1, bias=False), 0, spoil, at
        nn.init.ones_(self.model.weight)

    def losses(self, images, labels):
        self.step += 1
        loss = self.model(images[:, 0, 0, :1]).mean()
        if self.spoil is not None and self.step == self.at:
            loss = loss * self.spoil
        return {"loss": loss, "ce": loss * 0 + 2, "numbers": images[:, 0, 0, 0].mean()}


def epoch_of(method, count=10, batch_size=3):
    optimizer = torch.optim.SGD(method.model.parameters(), lr=0.0)
    return engine.train_epoch(method, method.losses, split(count, batch_size), optimizer, "Epoch 1/1")[0]


def test_losses_without_a_loss():
    forgetful = SimpleNamespace(trained=nn.Linear(1, 1), batches=lambda loader: loader)
    with pytest.raises(UserError, match='losses: must return a dictionary with "loss"'):
        engine.train_epoch(forgetful, lambda images: {"ce": images.sum()}, [(torch.ones(1),)], None, "")


def test_training_means_are_weighted_by_images():
    means = epoch_of(Toy())
    assert means.images == 10
    assert means.values() == pytest.approx({"loss": 4.5, "ce": 2.0, "numbers": 4.5})


def test_means_are_exact_sums_in_double():
    generator, sizes = torch.Generator().manual_seed(0), [128] * 40 + [7]
    batches = [torch.randn(2, generator=generator) for _ in sizes]
    means, sums = Means(), [0.0, 0.0]
    for values, images in zip(batches, sizes, strict=True):
        means.add({"loss": values[0], "acc": values[1].double() / 3}, images)
        sums = [sums[0] + values[0].item() * images, sums[1] + values[1].double().item() / 3 * images]
    assert means.values() == {"loss": sums[0] / sum(sizes), "acc": sums[1] / sum(sizes)}


class Pull(Method):
    """Two weights that start at 0. Their gradient is (3, 4), whose norm is 5."""

    def __init__(self):
        self.model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.model.weight)

    def losses(self, images, labels):
        return {"loss": (self.model.weight * torch.tensor([3.0, 4.0])).sum()}


@pytest.mark.parametrize(("limit", "factor"), [(0, 1), (0.0, 1), (10, 1), (5.001, 1), (1, 0.2), (2.5, 0.5)])
def test_clip_grad_norm_scales_the_gradient(limit, factor):
    method = Pull()
    optimizer = torch.optim.SGD(method.model.parameters(), lr=1.0)
    engine.train_epoch(method, method.losses, split(3, 3), optimizer, "Epoch 1/1", clip_grad_norm=limit)
    expected = -factor * torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(method.model.weight.detach(), expected, rtol=1e-6 if factor < 1 else 0, atol=0)


def test_a_norm_below_the_limit_changes_no_bit(trained, tmp_path):
    for limit in (0, 1e9):
        folder = experiment(tmp_path / str(limit), clip_grad_norm=limit)
        train(folder)
        assert same_weights(folder / "last_model.tar", trained / "baseline/teacher/last_model.tar")
        assert metrics(folder) == metrics(trained / "baseline/teacher")


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_epoch(spoil, at):
    with pytest.raises(Diverged) as stopped:
        epoch_of(Toy(spoil, at))
    assert "loss" in str(stopped.value) and "ce" in str(stopped.value)


def test_divergence_is_noticed_before_the_epoch_ends():
    toy = Toy(float("nan"))
    with pytest.raises(Diverged):
        epoch_of(toy, count=250, batch_size=1)
    assert toy.step <= engine.CHECK_EVERY


def diverge(folder, monkeypatch, epoch):
    """Run `folder` with a loss that is infinite in epoch `epoch`, counted from 1."""
    honest, seen = losses.F.cross_entropy, []

    def spoilt(logits, *rest, **options):
        value = honest(logits, *rest, **options)
        seen.append(logits.requires_grad)
        return value * (float("inf") if sum(seen) == 3 * epoch else 1)  # three steps per epoch

    monkeypatch.setattr(losses.F, "cross_entropy", spoilt)
    return script("train_scratch.py", "--save_path", folder)


def test_divergence_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    folder, whole = experiment(tmp_path / "x", num_epochs=4), experiment(tmp_path / "whole", num_epochs=2)
    done = diverge(folder, monkeypatch, epoch=3)
    monkeypatch.undo()
    assert done.status == 1
    assert len(done.err.splitlines()) == 1
    # epoch, term, value, remedies, where to continue from
    for word in ("3/4", "loss", "inf", "learning_rate", "clip_grad_norm", "last_model.tar"):
        assert word in done.err
    assert done.err.strip() in (folder / "training.log").read_text()
    train(whole)
    assert torch.load(folder / "last_model.tar", weights_only=True)["epoch"] == len(metrics(folder)) == 2
    for name, value in weights(whole / "last_model.tar").items():
        assert torch.equal(value, weights(folder / "last_model.tar")[name])


def test_divergence_in_the_first_epoch_leaves_no_checkpoint(tmp_path, monkeypatch):
    folder = experiment(tmp_path / "x")
    done = diverge(folder, monkeypatch, epoch=1)
    assert done.status == 1 and "1/2" in done.err
    assert {path.name for path in files(folder)} == {"params.json", "training.log"}


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """With one step per epoch, the loss is finite and the weights after it are not. Only the evaluation shows this."""
    keys = {"optimizer": "sgd", "learning_rate": 1e38, "batch_size": 898, "num_epochs": 1}
    folder = experiment(tmp_path / "x", **keys)
    done = script("train_scratch.py", "--save_path", folder)
    assert done.status == 1 and "1/1" in done.err and len(done.err.splitlines()) == 1
    assert not list(folder.glob("*.tar"))
    assert not (folder / "metrics.jsonl").exists()


def test_losses_are_float32_where_networks_are_bf16():
    dtypes = []
    for bf16 in (False, True):
        network = Zoo(data.DATASETS["digits"], torch.device("cpu"), bf16).fresh("net", num_channels=4)
        network.fc2.register_forward_hook(lambda layer, images, logits: dtypes.append(logits.dtype))
        logits = network(torch.zeros(2, 3, 32, 32))
        loss = losses.kl(logits, logits.detach()) + losses.cross_entropy(logits, torch.tensor([0, 1]))
        loss.backward()
        assert logits.dtype == loss.dtype == network.fc1.weight.grad.dtype == torch.float32
    assert dtypes == [torch.float32, torch.bfloat16]


def test_auto_precision_is_bf16_where_the_hardware_has_it(monkeypatch):
    device = torch.device("cpu")
    for has in (False, True):
        monkeypatch.setattr(engine, "has_bf16", lambda device, has=has: has)
        found = [engine.resolve_precision(name, device) for name in ("fp32", "bf16", "auto")]
        assert found == ["fp32", "bf16", "bf16" if has else "fp32"]


def test_training_log_has_the_originals_wording(trained):
    log = (trained / "kd_nasty/nasty/training.log").read_text()
    for line in (r"Epoch 2/2", r"- Train loss : \d+\.\d{3}", r"- So far best epoch: \d+, best acc: \d\d\.\d\d"):
        assert len(re.findall(rf": {line}", log)) >= 1
    assert re.search(r"- Eval metrics : acc: \d\d\.\d\d ; loss: \d+\.\d{3}", log)
    assert "torch" in log and "fp32" in log and "digits: 44 training" in log


def test_the_commit_in_the_log_is_dirty_where_source_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    commit = environment.commit.__wrapped__  # without the cache
    assert commit() == ""
    for name in ("method.py", "training.log"):
        (tmp_path / name).write_text("1\n")
    author = ["-c", "user.name=x", "-c", "user.email=x@y.z"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "x"]):
        environment.git(*command)
    head = commit()
    assert len(head) >= 10 and "-" not in head
    (tmp_path / "training.log").write_text("2\n")
    (tmp_path / "metrics.jsonl").touch()
    assert commit() == head
    for name in ("method.py", "new.py"):
        (tmp_path / name).write_text("2\n")
        assert commit() == f"{head}-dirty"
        environment.git("checkout", "--quiet", "method.py")
