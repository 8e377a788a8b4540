"""skeptical, htc, scm and averager: equations in float64, and properties."""

import pytest
import torch
from projects import TINY, experiment, metrics, script, tiny_loader, with_teacher
from test_losses import LABELS, check, logits, softmax, written_ce, written_kl
from test_methods import SMALL

import method
import model
from method.attack.averager import class_means
from method.attack.htc import htc_loss
from method.attack.scm import scm_loss
from method.attack.skeptical import skeptical_loss
from model.auxiliary import stages
from training import engine, params
from training.zoo import Zoo
from utils import data
from utils.epochs import seed_everything
from utils.losses import cross_entropy

SETTINGS = [(1.0, 0.3), (4.0, 0.9), (20.0, 0.9)]
DIGITS = data.DATASETS["digits"]


def written_kd(student, teacher, T, alpha):
    return alpha * T**2 * written_kl(teacher, student, T) + (1 - alpha) * written_ce(student, LABELS.tolist())


@pytest.mark.parametrize(("T", "alpha"), SETTINGS)
def test_htc_loss_has_two_temperatures(T, alpha):
    def written(student, teacher):
        divergence = 0.0
        for s, t in zip(student, teacher, strict=True):
            divergence += written_kl([[z / T for z in t]], [s], 1.0) / len(student)
        return alpha * divergence + (1 - alpha) * written_ce(student, LABELS.tolist())

    student, teacher = logits(0), logits(1).detach()
    check(htc_loss(student, teacher, LABELS, T, alpha)[0], written, student, teacher)
    assert softmax([1.0, 2.0], 1e9) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_htc_is_label_smoothing_where_the_temperature_melts_the_teacher(alpha):
    """At a high temperature the gradient is that of label smoothing with ε = α, which is why htc has a control."""
    student, teacher = logits(0), logits(1).detach()
    (own,) = torch.autograd.grad(htc_loss(student, teacher, LABELS, 1e9, alpha)[0], student)
    (smooth,) = torch.autograd.grad(cross_entropy(student, LABELS, alpha), student)
    torch.testing.assert_close(own, smooth)


def test_class_means():
    z = logits(0).detach()
    means = class_means(z, LABELS)  # 0, 6, 3, 3, 1
    for i, j in ((0, 0), (1, 1), (4, 4)):
        torch.testing.assert_close(means[i], z[j])
    torch.testing.assert_close(means[2], (z[2] + z[3]) / 2)
    assert torch.equal(means[2], means[3])


@pytest.mark.parametrize(("T", "alpha"), SETTINGS)
def test_averager_loss(T, alpha, trained):
    def written(student, teacher):
        same = [[t for t, other in zip(teacher, LABELS, strict=True) if other == label] for label in LABELS]
        means = [[sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in same]
        return written_kd(student, means, T, alpha)

    learner = build(trained, "averager", temperature=T, alpha=alpha)[0]
    student, teacher = logits(0), logits(1).detach()
    learner.model, learner.teacher = (lambda images: student), (lambda images: teacher)
    check(learner.losses(None, LABELS)["loss"], written, student, teacher)


@pytest.mark.parametrize(("T", "alpha"), SETTINGS)
def test_scm_loss(T, alpha):
    constants = [logits(seed).tolist() for seed in (0, 2)]

    def written(first, second, third, teacher):
        pairs = (first, teacher), (second, constants[0]), (third, constants[1])
        return sum(written_kd(student, own, T, alpha) for student, own in pairs)

    students, teacher = [logits(0), logits(2), logits(3)], logits(1).detach()
    loss, distillation, ce = scm_loss(students, teacher, LABELS, T, alpha)
    check(loss, written, *students, teacher)
    assert loss.item() == pytest.approx((alpha * distillation + (1 - alpha) * ce).item())


@pytest.mark.parametrize("heard", [0.0, 1.0])
@pytest.mark.parametrize(("T", "alpha"), SETTINGS)
def test_skeptical_loss(T, alpha, heard):
    """The final output learns from labels, the deepest head from the final output, the listener from the teacher."""

    def written(final, deepest, listener, teacher):
        inner = 0.3 * written_kl(final, deepest, T) + 0.7 * written_ce(deepest, LABELS.tolist())
        return written_ce(final, LABELS.tolist()) + heard * (written_kd(listener, teacher, T, alpha) + inner)

    final, deepest, listener, teacher = logits(0), logits(2), logits(3), logits(1).detach()
    loss, distillation, ce_listener, ce = skeptical_loss(final, deepest, listener, teacher, LABELS, T, alpha, heard)
    check(loss, written, final, deepest, listener, teacher)
    assert ce.item() == pytest.approx(written_ce(final.tolist(), LABELS.tolist()))
    assert ce_listener.item() == pytest.approx(written_ce(listener.tolist(), LABELS.tolist()))
    assert distillation.item() == pytest.approx(T**2 * written_kl(teacher.tolist(), listener.tolist(), T))


COUNTS = {"net": 3, "resnet8": 3, "resnet18": 4, "preresnet20": 3, "resnext29": 3, "mobilenetv2": 7}
COUNTS |= {"shufflenetv2": 3, "densenet121": 4, "mlp": 0}


@pytest.mark.parametrize("name", COUNTS)
def test_stages_of_every_network(name):
    with torch.device("meta"):
        network = model.build(name, 10).eval()
        shapes = []
        for part in stages(network):
            part.register_forward_hook(lambda part, inputs, output: shapes.append(output.shape))
        network.features(torch.empty(2, 3, 32, 32))
    assert len(shapes) == COUNTS[name]
    assert all(len(shape) == 4 for shape in shapes)
    assert [shape[-1] for shape in shapes] == sorted((shape[-1] for shape in shapes), reverse=True)


def build(trained, name, **changes):
    raw = TINY | with_teacher(trained / "kd_nasty/nasty", method=name, **changes)
    checked = params.check(raw, "params.json")
    learner = method.find(name)(checked, Zoo(DIGITS, torch.device("cpu")))
    loader = tiny_loader()
    return learner, loader, engine.make_optimizer(checked, learner.trained)


def test_only_the_listeners_stages_hear_the_teacher(trained):
    """The teacher's term has a gradient up to the listener's stage and in its head, and nowhere else."""
    learner, loader, _ = build(trained, "skeptical", kd_delay=0)
    terms = learner.losses(*next(iter(loader)))
    parts = dict(model=learner.model, heads=learner.heads)
    named = {f"{part}.{name}": p for part, owner in parts.items() for name, p in owner.named_parameters()}
    gradients = torch.autograd.grad(terms["distillation"], list(named.values()), allow_unused=True)
    heard = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
    own = {name for name in named if name.startswith("heads.1.")}
    assert heard == {f"model.{name}" for name in ("conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias")} | own and own


def test_the_teacher_is_heard_from_kd_delay_on(trained):
    """Before kd_delay the loss is the cross-entropy of the student's own output."""
    learner, loader, _ = build(trained, "skeptical", kd_delay=1)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        terms = learner.losses(*next(iter(learner.batches(loader))))
        assert torch.equal(terms["loss"], terms["ce"]) == (epoch == 0)


def test_one_head_may_have_both_roles(trained):
    learner, loader, optimizer = build(trained, "skeptical", loc=1, kd_delay=0, learning_rate=0.001)
    assert len(learner.heads) == 1
    first, *_, last = (engine.train_epoch(learner, learner.losses, loader, optimizer, "")[0].values() for _ in range(6))
    assert last["distillation"] < first["distillation"] and last["ce"] < first["ce"]


def test_the_listener_learns(trained):
    """The listener can be trained: with labels only, its accuracy rises far above chance (10 %)."""
    learner, _, optimizer = build(trained, "skeptical", alpha=0.0, kd_delay=0, num_channels=16, learning_rate=0.01)
    digits = data.load("digits", "", torch.device("cpu"))
    loader = digits.train_loader(16)
    for epoch in range(10):
        loader.set_epoch(epoch)
        engine.train_epoch(learner, learner.losses, loader, optimizer, "")
    assert learner.evaluate(digits.test_loader())["acc_listener"] > 50


def test_heads_are_trained_but_not_part_of_the_student(trained):
    learner, loader, optimizer = build(trained, "skeptical", kd_delay=0)
    before = [p.clone() for p in learner.heads.parameters()]
    engine.train_epoch(learner, learner.losses, loader, optimizer, "")
    assert not any(torch.equal(a, b) for a, b in zip(before, learner.heads.parameters(), strict=True))
    statistics = [b.clone() for b in learner.heads.buffers()]
    scores = learner.evaluate(loader)
    assert 0 <= scores["acc_listener"] <= 100
    assert all(torch.equal(a, b) for a, b in zip(statistics, learner.heads.buffers(), strict=True))
    assert learner.model.state_dict().keys() == model.build("net", 10).state_dict().keys()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"loc": 0}, '"loc": must be at least 1'),
        ({"loc": 3, "kd_delay": 0}, '"loc": 3 needs 4 stages, but net has 3'),
        ({"kd_delay": 2}, '"kd_delay": must be below "num_epochs" 2, not 2, because no head would learn'),
        ({}, '"kd_delay": must be below "num_epochs" 2, not 20'),
    ],
)
def test_skeptical_students_are_refused(keys, words, trained, tmp_path):
    folder = experiment(tmp_path / "x", **with_teacher(trained / "kd_nasty/nasty", method="skeptical", **keys))
    done = script("train_kd.py", "--save_path", folder)
    assert done.status == 2 and words in done.err and len(done.err.splitlines()) == 1


def test_a_network_without_stages(trained, tmp_path):
    keys = with_teacher(trained / "kd_nasty/nasty", method="skeptical", model_name="mlp", num_channels=None, kd_delay=0)
    done = script("train_kd.py", "--save_path", experiment(tmp_path / "x", **keys))
    assert done.status == 2 and '"loc": 2 needs 3 stages, but mlp has 0' in done.err


def test_scm_trains_every_student_and_scores_the_last_one_and_their_ensemble(trained):
    """`acc` is the accuracy of a single student, as for every other attack."""
    learner, loader, optimizer = build(trained, "scm")
    before = [[p.clone() for p in student.parameters()] for student in learner.students]
    assert len(before) == 3 and not torch.equal(before[0][0], before[1][0])
    engine.train_epoch(learner, learner.losses, loader, optimizer, "")
    for old, student in zip(before, learner.students, strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(old, student.parameters(), strict=True))
    scores = learner.evaluate(loader)
    assert not any(student.training for student in learner.students)
    with torch.no_grad():
        votes = [(y, sum(student(x).softmax(1) for student in learner.students), learner.model(x)) for x, y in loader]
    labels, together, last = (torch.cat(parts) for parts in zip(*votes, strict=True))
    for name, outputs in (("acc", last), ("acc_ensemble", together)):
        assert scores[name] == pytest.approx(100 * (outputs.argmax(1) == labels).double().mean().item())


def test_scm_of_one_student_is_kd(trained):
    terms = {}
    for name, more in (("kd", {}), ("scm", {"generations": 1})):
        seed_everything(0, epoch=-1)
        learner, loader, _ = build(trained, name, **more)
        terms[name] = learner.losses(*next(iter(loader)))
    assert all(torch.equal(terms["kd"][name], terms["scm"][name]) for name in ("loss", "distillation", "ce"))


@pytest.mark.parametrize("name", ["skeptical", "htc", "scm", "averager"])
@pytest.mark.parametrize("rule", [{}, {"release": "stingy", "rho": 0.2}], ids=["logits", "stingy"])
def test_every_attack_is_trained_and_evaluated_by_the_script(name, rule, trained, tmp_path):
    keys = with_teacher(trained / "kd_nasty/nasty", method=name, **SMALL.get(name, {}), **rule)
    folder = experiment(tmp_path / "x", **keys)
    done = script("train_kd.py", "--save_path", folder)
    assert done.status == 0, done.err
    assert len(metrics(folder)) == 2
    best = max(metrics(folder), key=lambda line: (line["test"]["acc"], line["epoch"]))["test"]
    scored = script("train_kd.py", "--save_path", folder, "--evaluate")
    assert scored.status == 0 and f"acc: {best['acc']:.2f} ;" in scored.out
