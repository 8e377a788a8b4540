"""possessive, sdb, stingy, perturb and mildly_nasty: equations in float64, files, and refused inputs."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from projects import TINY, experiment, metrics, same_weights, script, tiny_loader, train, with_teacher
from test_losses import LABELS, check, logits, softmax, written_ce, written_kl
from test_methods import SMALL

import method
import model
from method import image_key
from method.defend.mildly_nasty import half_loss
from method.defend.perturb import noise
from method.defend.possessive import possessive_loss, rank_correlation, reverse, split_wrong_classes
from method.defend.sdb import sdb_loss
from method.defend.stingy import sparse
from method.release import WITHHELD, Release
from training import engine, params, spec
from training.zoo import Zoo
from utils import checkpoint, data
from utils.epochs import seed_everything
from utils.losses import kl

DIGITS = data.DATASETS["digits"]


def others(row, label):
    return [z for c, z in enumerate(row) if c != label]


def reversed_order(row):
    """Give the k-th highest value to the class with the k-th lowest value."""
    classes = sorted(range(len(row)), key=lambda c: -row[c])
    target = [0.0] * len(row)
    for k, c in enumerate(classes):
        target[c] = row[classes[len(row) - 1 - k]]
    return target


def half_right():
    """Logits of an adversarial network that is right on the first and third image only."""
    z = logits(1).detach()
    for i, label in enumerate(LABELS.tolist()):
        z[i, label] = 9.0 if i in (0, 2) else -9.0
    return z


@pytest.mark.parametrize("order", ["reversed", "away", "flat"])
@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_possessive_loss(order, T):
    def written_terms(rows, originals):
        target = last = 0.0
        for row, original, label in zip(rows, originals, LABELS.tolist(), strict=True):
            b_A, b = softmax(original, T)[label], softmax(row, T)[label]
            if max(original) == original[label]:
                target += b_A * math.log(b_A / b) + (1 - b_A) * math.log((1 - b_A) / (1 - b))
            own, wanted = others(row, label), others(original, label)
            if order == "away":
                last -= written_kl([own], [wanted], T)
            else:
                last += written_kl([reversed_order(wanted) if order == "reversed" else [0.0] * len(own)], [own], T)
        return written_ce(rows, LABELS.tolist()), T**2 * target / len(rows), T**2 * last / len(rows)

    def written(rows, originals):
        ce, target, last = written_terms(rows, originals)
        return ce + 0.7 * target + 0.3 * last

    own, original = logits(0), half_right()
    loss, *terms = possessive_loss(own, original, LABELS, T, 0.7, 0.3, order)
    check(loss, written, own, original)
    assert [term.item() for term in terms] == pytest.approx(written_terms(own.tolist(), original.tolist()), rel=1e-9)


def test_possessive_loss_is_smallest_where_the_order_is_reversed():
    original, z = half_right(), logits(0)
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        last = possessive_loss(z, original, LABELS, 4.0, 0.0, 1.0)[3]
        last.backward()
        return last

    optimizer.step(loss)
    assert loss().item() == pytest.approx(0, abs=1e-7)
    wrong, wrong_original = (split_wrong_classes(m, LABELS, 1.0)[0] for m in (z, original))
    assert rank_correlation(wrong, wrong_original).item() == pytest.approx(-1)


def test_reverse_keeps_the_values_and_inverts_the_ranks():
    z = logits(1).detach()
    assert torch.equal(reverse(z).sort(1).values, z.sort(1).values)
    assert torch.equal(reverse(reverse(z)), z)
    assert rank_correlation(reverse(z), z).item() == pytest.approx(-1)


def test_rank_correlation_is_spearmans():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (20, 9)), rng.integers(0, 6, (20, 9))  # with many equal values
    expected = np.mean([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert rank_correlation(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected)
    assert rank_correlation(torch.zeros(2, 5), torch.rand(2, 5)).item() == 0  # no order, and no NaN


@pytest.mark.parametrize("mse", ["sum", "mean"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("T", "weight"), [(4.0, 1.0), (20.0, 0.3)])
def test_sdb_loss(T, weight, sign, mse):
    constant = logits(2).tolist()  # sg[f(x_k)]

    def mean_square(one, other):
        total = sum((a - b) ** 2 for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
        return total / {"sum": 5, "mean": 5 * 7}[mse]

    def written_terms(own, keyed, original, random):
        labels = LABELS.tolist()
        soft, relu = (lambda m: [softmax(r, T) for r in m]), (lambda m: [[max(z, 0) for z in r] for r in m])
        return (
            2 * written_ce(own, labels) + written_ce(keyed, labels),
            T**2 * written_kl(own, original, T) - written_kl(own, constant, 1.0),
            mean_square(soft(original), soft(keyed)),
            0.01 * mean_square(relu(original), relu(keyed)) - mean_square(relu(random), relu(keyed)),
        )

    def written(*rows):
        embedding, disturbance, preservation, augmentation = written_terms(*rows)
        return embedding - weight * disturbance + preservation + sign * 0.05 * augmentation

    arguments = logits(0), logits(2), logits(1).detach(), logits(3).detach()
    loss, *terms = sdb_loss(*arguments, LABELS, T, weight, 0.05, sign, mse)
    check(loss, written, *arguments)
    expected = written_terms(*(a.tolist() for a in arguments))
    assert [term.item() for term in terms] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_half_loss_is_equation_2_and_spares_the_features(T):
    own, head, adversary = logits(0), logits(2), logits(1).detach()

    def written(rows, head_rows, originals):
        return written_ce(rows, LABELS.tolist()) - 0.3 * T**2 * written_kl(head_rows, originals, T)

    check(half_loss(own, head, adversary, LABELS, T, 0.3)[0], written, own, head, adversary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stingy_keeps_the_highest_logits_and_the_divergence_finite(dtype):
    z, student = logits(0).to(dtype).detach(), logits(1).to(dtype).detach().requires_grad_()
    kept = sparse(z, 3)
    assert torch.equal(kept.topk(3).values, z.topk(3).values) and (kept == WITHHELD).sum() == 5 * 4
    for T in (1.0, 20.0, 1e6):
        assert torch.equal((kept / T).softmax(1) > 0, kept > WITHHELD)
        divergence = kl(kept, student, T)
        assert divergence.isfinite() and torch.autograd.grad(divergence, student)[0].isfinite().all()
    assert torch.equal(sparse(z, 7), z)


class Teacher(torch.nn.Module):
    """A teacher whose logits are the first pixels of an image."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images, with_features=False):
        logits = images.flatten(1)[:, : self.num_classes]
        return (images, logits) if with_features else logits


@pytest.mark.parametrize(
    ("rho", "classes", "kept"),
    [(0.2, 10, 2), (0.1, 100, 10), (0.1, 200, 20), (0.29, 100, 29), (1, 10, 10), (0.19, 10, 1)],
)
def test_stingy_release(rho, classes, kept):
    rule = method.find_release("stingy")(Teacher(classes), params_of(rho=rho))
    assert ((rule(torch.rand(4, 3, 9, 9)) > WITHHELD).sum(1) == kept).all()


def perturbed(images, teacher=None, **keys):
    keys = {"strength": 4.0, "noise_seed": 0} | keys
    return method.find_release("perturb")(teacher or Teacher(10), params_of(**keys))(images)


def test_the_same_query_gets_the_same_perturbed_answer():
    """The noise does not depend on the rest of the batch. Another seed, or one changed bit, changes it."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 9, 9)
    answers = perturbed(images)
    assert torch.equal(perturbed(images.contiguous(memory_format=torch.channels_last).flip(0)).flip(0), answers)
    changed = images.clone()
    changed.view(-1)[-1:].view(torch.int32).bitwise_xor_(1)
    assert torch.equal(perturbed(changed)[:3], answers[:3]) and not torch.equal(perturbed(changed)[3], answers[3])
    assert not torch.equal(perturbed(images, noise_seed=1), answers)


def test_a_perturbed_answer_keeps_the_top_class():
    torch.manual_seed(0)
    images = torch.randn(500, 3, 9, 9)
    plain, answers = images.flatten(1)[:, :10], perturbed(images)
    assert torch.equal(answers.argmax(1), plain.argmax(1))
    assert (answers.topk(2).indices != plain.topk(2).indices)[:, 1].double().mean() > 0.5
    assert torch.equal(perturbed(images, strength=0.0), plain)


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_the_perturbation_is_standard_normal(seed):
    """The moments of the noise of 2,000 images are within five standard errors. Classes and images are uncorrelated."""
    torch.manual_seed(0)
    n = noise(torch.randint(0, 256, (2000, 3, 8, 8)) / 255, 10, seed).double()
    assert n.shape == (2000, 10) and n.isfinite().all()
    error = 5 / n.numel() ** 0.5
    assert abs(n.mean()) < error and abs(n.var() - 1) < 2**0.5 * error and abs((n**4).mean() - 3) < 96**0.5 * error
    assert (n.T.corrcoef() - torch.eye(10)).abs().max() < 5 / 2000**0.5
    assert abs((n[1:] * n[:-1]).mean()) < error


def test_a_student_of_perturbed_answers(trained, tmp_path):
    keys = with_teacher(trained / "baseline/teacher", release="perturb", strength=4)
    assert script("train_kd.py", "--save_path", experiment(tmp_path / "x", **keys)).status == 0
    assert script("train_kd.py", "--save_path", experiment(tmp_path / "y", **keys, augmentation=0)).status == 0
    lines = [metrics(tmp_path / name)[-1]["train"]["distillation"] for name in "xy"]
    assert all(math.isfinite(value) for value in lines) and lines[0] != lines[1]


def params_of(**values):
    return type("Params", (), values)


def test_logits_is_the_plain_rule():
    assert method.find_release("logits") is Release
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(Release(Teacher(5), None)(images), images.flatten(1)[:, :5])


@pytest.fixture(scope="module")
def sdb(tmp_path_factory, trained):
    """The run folder of a teacher with a key."""
    return teacher(tmp_path_factory.mktemp("sdb") / "teacher", trained, method="sdb")


def defended(trained, **changes):
    """The keys of params.json of a defended teacher."""
    source = {"adversarial_model": "net", "adversarial_resume": str(trained / "baseline/teacher/best_model.tar")}
    return source | {"temperature": 4} | changes


def teacher(folder, trained, **changes):
    done = script("train_nasty.py", "--save_path", experiment(folder, **defended(trained, **changes)))
    assert done.status == 0, done.err
    return folder


def test_the_key_is_a_function_of_the_seed_and_an_image():
    state = torch.get_rng_state()
    one, again, other = (image_key.random_key(DIGITS, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == (1, 3, 32, 32)
    pixels = one * torch.tensor(DIGITS.std)[:, None, None] + torch.tensor(DIGITS.mean)[:, None, None]
    assert 0 <= (pixels * 255).round().min() < 5 and 250 < (pixels * 255).round().max() <= 254
    assert (pixels * 255 - (pixels * 255).round()).abs().max() < 1e-3
    keyed = image_key.ImageKey(one, 0.9, "cpu")(torch.ones(2, 3, 32, 32))
    torch.testing.assert_close(keyed, (0.9 + 0.1 * one).expand(2, -1, -1, -1))


def test_sdb_starts_from_the_weights_of_its_seed_and_its_random_network_is_another(trained):
    def learner(seed):
        checked = params.check(experiment_keys(trained, method="sdb", seed=seed), "params.json")
        seed_everything(seed, epoch=-1)
        return method.find("sdb")(checked, Zoo(DIGITS, torch.device("cpu")))

    one, again, other = learner(0), learner(0), learner(1)
    seed_everything(0, epoch=-1)
    plain = model.build("net", 10, num_channels=2)

    def digest(network):
        return checkpoint.weights_digest(network.state_dict())

    assert digest(one.model) == digest(plain) != digest(one.random)
    assert digest(one.random) == digest(again.random) != digest(other.random)
    for network in (one.random, one.adversary):
        assert not network.training and not any(p.requires_grad for p in network.parameters())


def experiment_keys(trained, **changes):
    return TINY | defended(trained, **changes)


def test_sdb_keeps_its_key_and_scores_with_and_without(sdb):
    own, mix = image_key.load_key(sdb / "key.tar", 32)
    assert mix == 0.9
    for name in ("last_model.tar", "best_model.tar"):
        assert torch.equal(image_key.load_key(sdb / name, 32)[0], own)
    assert torch.equal(own, image_key.random_key(DIGITS, 0))
    for line in metrics(sdb):
        assert list(line["train"]) == ["loss", "embedding", "disturbance", "preservation", "augmentation"]
        assert {"acc", "acc_key"} <= line["test"].keys()
        terms = line["train"]
        total = terms["embedding"] - terms["disturbance"] + terms["preservation"] + 0.001 * terms["augmentation"]
        assert terms["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("keys", [{}, {"joint": False}])
def test_sdb_batch_norm_trains_with_the_statistics_that_it_keeps(keys, trained):
    """A joint pass updates the running averages once, with the statistics of images with and without the key."""
    checked = params.check(experiment_keys(trained, method="sdb", **keys), "params.json")
    learner = method.find("sdb")(checked, Zoo(DIGITS, torch.device("cpu")))
    images, labels = next(iter(tiny_loader()))
    with torch.no_grad():
        seen = learner.model.conv1(torch.cat((images, learner.key(images)))).transpose(0, 1).flatten(1)
    before = learner.model.bn1.running_mean.clone()
    learner.model.train()
    learner.losses(images, labels)
    updates = learner.model.bn1.num_batches_tracked.item()
    once = torch.allclose(learner.model.bn1.running_mean, 0.9 * before + 0.1 * seen.mean(1), atol=1e-6)
    assert (updates, once) == ((2, False) if keys else (1, True))


def student(folder, teacher, **changes):
    return experiment(folder, **with_teacher(teacher, **changes))


@pytest.mark.parametrize("name", ["key.tar", "best_model.tar", "last_model.tar"])
def test_a_student_with_the_key_asks_with_it(name, sdb, tmp_path):
    folder = student(tmp_path / "x", sdb, release="sdb", key_resume=str(sdb / name), method="kd")
    assert script("train_kd.py", "--save_path", folder).status == 0
    checked = params.load(folder)
    learner = method.find("kd")(checked, Zoo(DIGITS, torch.device("cpu")))
    images, network = torch.rand(4, 3, 32, 32), learner.teacher.teacher
    keyed = 0.9 * images + (1 - 0.9) * image_key.random_key(DIGITS, 0)
    torch.testing.assert_close(learner.teacher(images), network(keyed))
    checked.mix = 0.5
    other = method.find("kd")(checked, Zoo(DIGITS, torch.device("cpu"))).teacher(images)
    torch.testing.assert_close(other, network(0.5 * images + 0.5 * image_key.random_key(DIGITS, 0)))


@pytest.mark.parametrize("name", method.names()["attack"])
def test_every_attack_can_have_the_key(name, sdb, tmp_path):
    own = {field.name for field in dataclasses.fields(method.find(name).Params)}
    of_kd = {key: None for key in ("temperature", "alpha") if key not in own}
    small = of_kd | SMALL.get(name, {})
    folder = student(tmp_path / "x", sdb, method=name, **small, **keyed(sdb))
    done = script("train_kd.py", "--save_path", folder)
    assert done.status == 0, done.err
    assert len(metrics(folder)) == 2


def test_the_key_comes_from_the_run_of_its_teacher(sdb, tmp_path):
    folder = student(tmp_path / "x", sdb, release="sdb", key_resume=str(sdb / "key.tar"))
    sources = spec.make(folder).sources
    assert {name: source.folder for name, source in sources.items()} == dict.fromkeys(
        ("teacher_resume", "key_resume"), str(sdb)
    )


REFUSED = {  # name: (keys, from the folders of an SDB teacher, of the trained experiments and of files; words)
    "unknown rule": (lambda s, t, f: {"release": "stiny"}, 'unknown release "stiny"', 'did you mean "stingy"?'),
    "no logit": (lambda s, t, f: {"release": "stingy", "rho": 0.05}, '"rho": 0.05 of 10 classes releases no logit'),
    "rho 0": (lambda s, t, f: {"release": "stingy", "rho": 0}, '"rho": must be at most 1 and above 0, not 0'),
    "no rho": (lambda s, t, f: {"release": "stingy"}, 'missing key "rho"'),
    "rho of the plain rule": (lambda s, t, f: {"rho": 0.2}, 'unknown key "rho"'),
    "no key": (lambda s, t, f: {"release": "sdb"}, 'missing key "key_resume"'),
    "key of the plain rule": (lambda s, t, f: {"key_resume": "k.tar"}, 'unknown key "key_resume"'),
    "λ 0": (lambda s, t, f: keyed(s, mix=0), '"mix": must be at most 1 and above 0, not 0'),
    "λ above 1": (lambda s, t, f: keyed(s, mix=1.5), '"mix": must be at most 1 and above 0, not 1.5'),
    "missing key file": (lambda s, t, f: keyed(f / "nowhere"), "nowhere/key.tar: there is no such checkpoint"),
    "no key file": (lambda s, t, f: keyed(f / "text"), "text/key.tar: not a checkpoint, or truncated"),
    "a tensor for a key": (lambda s, t, f: keyed(f / "tensor"), "tensor/key.tar: has no key"),
    "a number for an image": (lambda s, t, f: keyed(f / "number"), "must have the shape (1, 3, 32, 32), not ()"),
    "λ in the key file": (lambda s, t, f: keyed(f / "mixed"), "λ of the key must be above 0 and at most 1, not 5.0"),
    "file without a key": (lambda s, t, f: keyed(f / "empty"), "empty/key.tar: has no key"),
    "key of another shape": (
        lambda s, t, f: keyed(f / "large"),
        "large/key.tar: the key must have the shape (1, 3, 32, 32), not (1, 3, 64, 64)",
    ),
    "key of another teacher": (lambda s, t, f: keyed(f / "other"), "other/key.tar: not the key of this teacher"),
    "teacher without a key": (
        lambda s, t, f: keyed(s, teacher_resume=str(t / "kd_nasty/nasty/best_model.tar")),
        "nasty/best_model.tar: has no key; only key.tar and checkpoints of the method sdb have one",
    ),
}  # fmt: skip


def keyed(folder, **changes):
    return {"release": "sdb", "key_resume": str(folder / "key.tar")} | changes


@pytest.mark.parametrize("name", REFUSED)
def test_students_are_refused(name, sdb, trained, tmp_path):
    for folder in ("text", "empty", "large", "other", "tensor", "number", "mixed"):
        (tmp_path / folder).mkdir()
    (tmp_path / "text/key.tar").write_text("key")
    checkpoint.save(tmp_path / "empty/key.tar", {"extra": {}, "params": {"mix": 0.9}})
    odd = {"tensor": torch.rand(3), "number": {"image": torch.tensor(1.0)}}
    for folder, content in odd.items():
        checkpoint.save(tmp_path / folder / "key.tar", {"extra": {"key": content}, "params": {"mix": 0.9}})
    for folder, size, mix in (("large", 64, 0.9), ("other", 32, 0.9), ("mixed", 32, 5.0)):
        image = torch.rand(1, 3, size, size)
        checkpoint.save(tmp_path / folder / "key.tar", {"extra": {"key": {"image": image}}, "params": {"mix": mix}})
    keys, *words = REFUSED[name]
    folder = student(tmp_path / "x", sdb, **keys(sdb, trained, tmp_path))
    done = script("train_kd.py", "--save_path", folder)
    assert done.status == 2 and not done.out and len(done.err.splitlines()) == 1
    assert all(word in done.err for word in words), done.err
    assert sorted(path.name for path in folder.iterdir()) == ["params.json"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"method": "sdb", "mix": 0}, '"mix": must be'),
        ({"method": "sdb", "mix": 1.01}, '"mix": must be'),
        ({"method": "sdb", "eta_sign": "plus"}, '"eta_sign": must be one of purpose, printed, not "plus"'),
        ({"method": "possessive", "order": "forward"}, '"order": must be one of reversed, away, flat, not "forward"'),
        ({"method": "possessive", "beta_others": -1}, '"beta_others": must be at least 0'),
        ({"method": "mildly_nasty", "weight": 0.1, "variant": "heavy"}, '"variant": must be one of half, light, '),
        ({"method": "mildly_nasty", "weight": 0.1, "variant": "light", "num_channels": 8}, "weights do not fit a Net"),
        ({"method": "mildly_nasty", "weight": 0.1, "variant": "light", "model_name": "mlp", "num_channels": None},
         "must be net, because light starts from the weights of the adversarial network"),
        ({"method": "stingy"}, '"release": "stingy" in a student\'s params.json'),
    ],
)  # fmt: skip
def test_teachers_are_refused(changes, word, trained, tmp_path):
    done = script("train_nasty.py", "--save_path", experiment(tmp_path / "x", **defended(trained, **changes)))
    assert done.status == 2 and word in done.err and len(done.err.splitlines()) == 1, done.err


def test_possessive_logs_its_checks(trained, tmp_path):
    folder = teacher(tmp_path / "x", trained, method="possessive")
    for line in metrics(folder):
        assert list(line["train"]) == ["loss", "ce", "target", "others"]
        assert -1 <= line["test"]["rank_correlation"] <= 1 and 0 <= line["test"]["agreement"] <= 100


def build(trained, **changes):
    checked = params.check(experiment_keys(trained, method="mildly_nasty", weight=0.1, **changes), "params.json")
    learner = method.find("mildly_nasty")(checked, Zoo(DIGITS, torch.device("cpu")))
    loader = tiny_loader()
    return learner, loader, engine.make_optimizer(checked, learner.trained)


def test_half_spoils_the_last_layer_only(trained):
    """The gradient of all other weights is that of the cross-entropy."""
    learner, loader, _ = build(trained, variant="half")
    batch = next(iter(loader))
    terms = learner.losses(*batch)
    named = dict(learner.model.named_parameters())
    both, ce = ([*torch.autograd.grad(terms[t], list(named.values()), retain_graph=True)] for t in ("loss", "ce"))
    differ = {name for name, a, b in zip(named, both, ce, strict=True) if not torch.allclose(a, b, atol=1e-7)}
    assert differ == {"fc2.weight", "fc2.bias"}


@pytest.mark.parametrize("keys", [{}, {"body": "eval"}], ids=["train", "eval"])
@pytest.mark.parametrize("variant", ["light", "light_deep"])
def test_light_trains_the_last_layer_only(variant, keys, trained):
    """As released, the running averages of the frozen layers are updated. With "eval" they do not change."""
    learner, loader, optimizer = build(trained, variant=variant, width=5, **keys)
    origin = {name: value.clone() for name, value in learner.adversary.state_dict().items()}
    assert all(torch.equal(value, origin[name]) for name, value in learner.model.state_dict().items())
    first = engine.train_epoch(learner, learner.losses, loader, optimizer, "")[0].values()
    assert all(part.training != bool(keys) for name, part in learner.model.named_modules() if name != "fc2")
    for _ in range(5):
        last = engine.train_epoch(learner, learner.losses, loader, optimizer, "")[0].values()
    learner.evaluate(loader)
    assert last["loss"] < first["loss"]
    changed = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, origin[name])}
    averages = {name for name, _ in learner.model.named_buffers()}
    assert changed == {"fc2.weight", "fc2.bias"} | (set() if keys else averages)
    if variant == "light_deep":
        images = next(iter(loader))[0]
        features = learner.model.features(images)
        torch.testing.assert_close(learner.model(images), learner.new_layers(features))
        assert torch.linalg.matrix_rank(learner.model.fc2.weight) == 5


def test_light_deep_is_as_wide_as_there_are_classes(trained):
    learner = build(trained, variant="light_deep")[0]
    assert [layer.out_features for layer in learner.new_layers] == [10, 10]


@pytest.mark.parametrize("variant", ["light", "light_deep"])
def test_a_light_teacher_is_an_ordinary_teacher_and_resumes(variant, trained, tmp_path):
    keys = {"method": "mildly_nasty", "weight": 0.1, "variant": variant, "width": 6}
    whole = teacher(tmp_path / "whole", trained, **keys)
    cut = teacher(tmp_path / "cut", trained, **keys, num_epochs=1)
    shutil.copy(whole / "params.json", cut)
    assert script("train_nasty.py", "--save_path", cut).status == 0
    assert metrics(whole) == metrics(cut)
    assert script("train_kd.py", "--save_path", student(tmp_path / "student", whole)).status == 0
    scored = script("train_nasty.py", "--save_path", whole, "--evaluate")
    assert f"acc: {max(line['test']['acc'] for line in metrics(whole)):.2f}" in scored.out


def test_a_nasty_teacher_sees_other_batches_than_its_original(trained, tmp_path):
    """With weight 0, loss and initial weights are those of the original, but the order of images differs."""
    teacher = trained / "baseline/teacher"
    nasty = experiment(tmp_path / "nasty", **with_teacher(teacher, "adversarial", weight=0), num_epochs=1)
    train(nasty)
    assert metrics(nasty)[0]["train"]["loss"] != metrics(teacher)[0]["train"]["loss"]
    assert not same_weights(nasty / "last_model.tar", teacher / "last_model.tar")


def test_a_student_sees_the_batches_of_its_baseline(trained, tmp_path):
    """With alpha 0 the loss is the cross-entropy, so the student has the weights of its baseline to the last bit."""
    student = experiment(tmp_path / "student", **with_teacher(trained / "kd_nasty/nasty", alpha=0))
    train(student)
    assert same_weights(student / "last_model.tar", trained / "baseline/student/last_model.tar")
