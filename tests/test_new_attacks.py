"""logit_std, dkd, hard_label, mkd and recover: equations in float64, and properties."""

import math

import pytest
import torch
from projects import TINY, tiny_loader, with_teacher
from test_losses import LABELS, check, logits, softmax, written_ce, written_kl
from test_methods import build as build_small

import method
from method.attack.dkd import dkd_loss
from method.attack.hard_label import hard_label_loss
from method.attack.logit_std import logit_std_loss, standardise
from method.attack.mkd import Matrices, markov, mkd_loss
from method.attack.recover import recover
from method.defend.reverse_sigmoid import reverse_sigmoid
from method.defend.stingy import sparse
from method.release import WITHHELD
from training import engine, params
from training.zoo import Zoo
from utils import data
from utils.epochs import seed_everything
from utils.errors import UserError

STINGY = {"release": "stingy", "rho": 0.2}
# Keys of kd that another method does not have.
WITHOUT = {"dkd": {"alpha"}, "hard_label": {"alpha", "temperature"}}


def build(trained, name, **changes):
    """(the method with a nasty teacher, a loader of 44 digits, an optimizer)."""
    raw = TINY | with_teacher(trained / "kd_nasty/nasty", method=name)
    raw = {key: value for key, value in raw.items() if key not in WITHOUT.get(name, ())} | changes
    checked = params.check(raw, "params.json")
    learner = method.find(name)(checked, Zoo(data.DATASETS["digits"], torch.device("cpu")))
    loader = tiny_loader()
    return learner, loader, engine.make_optimizer(checked, learner.trained)


# Logit standardisation


def written_z(row):
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / (len(row) - 1))
    return [(z - mean) / (1e-7 + deviation) for z in row]


@pytest.mark.parametrize(("T", "alpha", "strength"), [(1.0, 0.3, 1.0), (2.0, 0.9, 10.0), (4.0, 0.9, 10.0)])
def test_logit_std_loss(T, alpha, strength):
    def written(student, teacher):
        divergence = written_kl([written_z(row) for row in teacher], [written_z(row) for row in student], T)
        return strength * alpha * T**2 * divergence + (1 - alpha) * written_ce(student, LABELS.tolist())

    student, teacher = logits(0), logits(1)
    loss, distillation, ce = logit_std_loss(student, teacher, LABELS, T, alpha, strength)
    check(loss, written, student, teacher)
    assert loss.item() == pytest.approx((strength * alpha * distillation + (1 - alpha) * ce).item())


def test_standardise_undoes_an_affine_change_of_each_row():
    z = logits(0).detach()
    scale, shift = torch.tensor([[0.1], [1.0], [7.0], [2.0], [30.0]]), torch.arange(5.0)[:, None]
    torch.testing.assert_close(standardise(scale * z + shift), standardise(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(standardise(z).std(1), torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0)


def test_standardise_leaves_out_what_is_withheld():
    z = logits(0).detach()
    found = standardise(sparse(z, 3))
    for row, own in zip(found, z, strict=True):
        values, places = own.topk(3)
        assert row[places].tolist() == pytest.approx(written_z(values.tolist()))
        assert (row == WITHHELD).sum() == 4
    assert torch.equal(standardise(sparse(z, 1)).amax(1), torch.zeros(5, dtype=torch.float64))


def test_standardise_has_a_gradient_where_all_logits_are_equal():
    z = torch.ones(2, 4, requires_grad=True)
    assert torch.equal(standardise(z), torch.zeros(2, 4))
    assert torch.autograd.grad(standardise(z).square().sum(), z)[0].isfinite().all()


# DKD


def written_dkd(student, teacher, T, beta_target, beta_others):
    target = others = 0.0
    for s, t, label in zip(student, teacher, LABELS.tolist(), strict=True):
        p, q = softmax(t, T)[label], softmax(s, T)[label]
        target += (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / len(student)
        rest = [[z for k, z in enumerate(row) if k != label] for row in (t, s)]
        others += written_kl(rest[:1], rest[1:], T) / len(student)
    return T**2 * (beta_target * target + beta_others * others)


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize(("T", "beta_target", "beta_others"), [(1.0, 1.0, 8.0), (4.0, 1.0, 8.0), (20.0, 0.3, 2.0)])
def test_dkd_loss(T, beta_target, beta_others, standardised):
    def written(student, teacher):
        if standardised:
            student, teacher = ([written_z(row) for row in rows] for rows in (student, teacher))
        return written_dkd(student, teacher, T, beta_target, beta_others)

    student, teacher = logits(0), logits(1).detach()
    terms = dkd_loss(student, teacher, LABELS, T, beta_target, beta_others, standardised)
    check(terms[0], written, student, teacher)
    assert terms[0].item() == pytest.approx((beta_target * terms[1] + beta_others * terms[2]).item())
    assert terms[3].item() == pytest.approx(written_ce(student.tolist(), LABELS.tolist()))


def test_dkd_weighs_the_parts_of_kd_apart():
    """Equation 6 of the paper holds for each image: KL( t ‖ s ) = KL( b_t ‖ b_s ) + (1 − P_y) KL( n_t ‖ n_s )."""
    for i in range(5):
        student, teacher, label = logits(0)[i : i + 1], logits(1)[i : i + 1], LABELS[i : i + 1]
        wrong = 1 - softmax(teacher[0].tolist(), 4.0)[int(label)]
        whole = 16 * written_kl(teacher.tolist(), student.tolist(), 4.0)
        assert dkd_loss(student, teacher, label, 4.0, 1.0, wrong)[0].item() == pytest.approx(whole)


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_dkd_compares_the_released_classes_alone(kept):
    student, teacher = logits(0), logits(1).detach()
    released = sparse(teacher, kept)
    *_, others, _ = dkd_loss(student, released, LABELS, 4.0, 1.0, 8.0)
    expected = 0.0
    for s, t, label in zip(student.tolist(), released.tolist(), LABELS.tolist(), strict=True):
        places = [k for k in range(7) if k != label and t[k] != WITHHELD]
        if places:
            expected += 16 * written_kl([[t[k] for k in places]], [[s[k] for k in places]], 4.0) / 5
    assert others.item() == pytest.approx(expected, abs=1e-12)
    gradient = torch.autograd.grad(others, student)[0]
    assert gradient[released == WITHHELD].abs().max() < 1e-15


@pytest.mark.parametrize(("warm_up", "weights"), [(0, [1, 1, 1]), (1, [1, 1, 1]), (4, [0.25, 0.5, 0.75])])
def test_dkd_warm_up(warm_up, weights, trained):
    learner, loader, _ = build(trained, "dkd", warm_up=warm_up)
    batch = next(iter(loader))
    for epoch, weight in enumerate(weights):
        loader.set_epoch(epoch)
        learner.batches(loader)
        terms = learner.losses(*batch)
        torch.testing.assert_close(terms["loss"], terms["ce"] + weight * (terms["target"] + 8 * terms["others"]))


# Labels only


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.6])
def test_hard_label_loss(epsilon):
    def written(student, teacher):
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            for k, p in enumerate(softmax(s, 1)):
                share = (1 - epsilon) * (k == t.index(max(t))) + epsilon / len(s)
                total -= share * math.log(p) / len(student)
        return total

    student, teacher = logits(0), logits(1).detach()
    check(hard_label_loss(student, teacher, epsilon)[0], written, student, teacher)


def test_labels_only_is_blind_to_labels_and_to_all_but_the_highest_answer(trained):
    terms = []
    for release in ({}, STINGY, {"release": "stingy", "rho": 0.1}):
        seed_everything(0, epoch=-1)
        learner, loader, _ = build(trained, "hard_label", **release)
        images, labels = next(iter(loader))
        terms.append(learner.losses(images, labels))
        assert torch.equal(learner.losses(images, labels.roll(1))["loss"], learner.losses(images, labels)["loss"])
        right = 100 * (learner.teacher(images).argmax(1) == labels).double().mean().item()
        assert terms[-1]["acc_answers"].item() == pytest.approx(right, rel=1e-6)
    assert torch.equal(terms[0]["loss"], terms[1]["loss"]) and torch.equal(terms[0]["loss"], terms[2]["loss"])


# Markov knowledge distillation


def written_markov(teacher, a, U, V, T):
    """p̃, computed class by class. a: [[a_c]]. U, V: one row of C·n numbers for each class."""
    rows = []
    for z, label in zip(teacher, LABELS.tolist(), strict=True):
        p, classes, rank = softmax(z, T), len(z), len(U[label]) // len(z)
        target = [0.0] * classes
        for i in range(classes):
            row = [a[label][0] * (i == j) for j in range(classes)]
            for j in range(classes):
                row[j] += sum(U[label][i * rank + k] * V[label][j * rank + k] for k in range(rank))
            for j, share in enumerate(softmax(row, 1)):
                target[j] += p[i] * share
        rows.append(target)
    return rows


def divergence(targets, student, T):
    pairs = zip(targets, (softmax(z, T) for z in student), strict=True)
    return sum(p * math.log(p / q) for ps, qs in pairs for p, q in zip(ps, qs, strict=True)) / len(targets)


@pytest.mark.parametrize(("T", "alpha"), [(1.0, 0.3), (4.0, 0.9), (20.0, 0.9)])
def test_mkd_losses(T, alpha):
    student, teacher, rank = logits(0), logits(1).detach(), 2
    a, U, V = (logits(seed, 7, size) for seed, size in ((2, 1), (3, 7 * rank), (4, 7 * rank)))

    def of_student(student, teacher, a, U, V):
        kd = T**2 * divergence(written_markov(teacher, a, U, V, T), student, T)
        return alpha * kd + (1 - alpha) * written_ce(student, LABELS.tolist())

    def of_matrices(student, teacher, a, U, V):
        return alpha * T**2 * divergence(written_markov(teacher, a, U, V, T), student, T)

    own = [part[LABELS] for part in (a.flatten(), U.unflatten(1, (7, rank)), V.unflatten(1, (7, rank)))]
    target, log_p = markov(teacher, *own, T)
    assert target.exp().sum(1).tolist() == pytest.approx([1.0] * 5)
    assert log_p.exp().flatten().tolist() == pytest.approx([p for row in teacher.tolist() for p in softmax(row, T)])
    loss, matrices, *_ = mkd_loss(student, target, LABELS, T, alpha)
    constants = [part.detach() for part in (a, U, V)]
    check(loss, of_student, student, teacher, *constants)
    check(matrices, of_matrices, student.detach(), teacher, a, U, V)
    assert not any(torch.autograd.grad(loss, [a, U, V], allow_unused=True))
    assert torch.autograd.grad(matrices, student, allow_unused=True) == (None,)


@pytest.mark.parametrize("diagonal", [0.1, 0.5, 0.9])
def test_mkd_begins_with_the_diagonal_it_is_given(diagonal):
    own = Matrices(10, 3, diagonal)
    rows = (torch.diag_embed(own.a[:, None].expand(10, 10)) + own.U @ own.V.mT).softmax(2)
    expected = torch.full((10, 10), (1 - diagonal) / 9).fill_diagonal_(diagonal)
    torch.testing.assert_close(rows.detach(), expected.expand(10, 10, 10))
    assert own.U.abs().min() > 0  # if U were 0, V would never have a gradient


def test_mkd_begins_as_released():
    torch.manual_seed(0)
    own = Matrices(10, 3)
    assert torch.equal(own.a, torch.ones(10)) and 0.9 < own.U.abs().max() <= 1 and 0.9 < own.V.abs().max() <= 1
    assert Matrices(10, 5).U.abs().max() <= math.sqrt(0.6)
    rows = (torch.eye(10) + own.U @ own.V.mT).softmax(2)
    assert rows.diagonal(dim1=1, dim2=2).mean().item() == pytest.approx(0.22, abs=0.02)


@pytest.mark.parametrize("release", [{}, STINGY], ids=["logits", "stingy"])
def test_mkd_trains_the_matrices_of_the_labels_it_sees_towards_the_student(release, trained):
    learner, loader, _ = build(trained, "mkd", matrix_learning_rate=0.1, **release)
    images, labels = next(iter(loader))
    labels = labels % 3
    before = {name: value.clone() for name, value in learner.matrices.named_parameters()}
    network = [p.clone() for p in learner.model.parameters()]
    terms = [learner.losses(images, labels) for _ in range(20)]
    assert terms[-1]["distillation"] < terms[0]["distillation"]
    assert all(map(torch.equal, network, learner.model.parameters()))
    for name, value in learner.matrices.named_parameters():
        changed = [not torch.equal(one, other) for one, other in zip(value, before[name], strict=True)]
        assert changed == [c < 3 for c in range(10)]


def test_mkd_logs_how_far_it_is_from_the_teacher(trained):
    learner, loader, _ = build(trained, "mkd", diagonal=0.999999, matrix_learning_rate=0.0)
    images, labels = next(iter(loader))
    terms, kd = learner.losses(images, labels), build(trained, "kd")[0]
    p = (learner.teacher(images) / 4).softmax(1)
    assert terms["change"].item() == pytest.approx(0, abs=1e-5)
    assert terms["on_label"].item() == pytest.approx(p.gather(1, labels[:, None]).mean().item(), rel=1e-4)
    kd.model = learner.model
    assert terms["loss"].item() == pytest.approx(kd.losses(images, labels)["loss"].item(), rel=1e-3)


# All of these attacks


@pytest.mark.parametrize("name", ["logit_std", "dkd", "hard_label", "mkd"])
def test_against_a_teacher_that_withholds_logits(name, trained):
    learner, loader, optimizer = build(trained, name, **STINGY)
    means = engine.train_epoch(learner, learner.losses, loader, optimizer, "")[0].values()
    assert all(abs(value) < 1e3 for value in means.values())


BAD = [
    ("logit_std", "strength", -1, '"strength": must be at least 0, not -1'),
    ("dkd", "beta_target", -1, '"beta_target": must be at least 0, not -1'),
    ("dkd", "beta_others", -0.1, '"beta_others": must be at least 0, not -0.1'),
    ("dkd", "warm_up", -1, '"warm_up": must be at least 0, not -1'),
    ("dkd", "warm_up", 0.5, '"warm_up": must be a whole number, not 0.5'),
    ("dkd", "temperature", 0, '"temperature": must be above 0, not 0'),
    ("dkd", "standardise", "yes", '"standardise": must be true or false'),
    ("dkd", "alpha", 0.9, 'unknown key "alpha"'),
    ("mkd", "rank", 0, '"rank": must be at least 1, not 0'),
    ("mkd", "matrix_learning_rate", -1, '"matrix_learning_rate": must be at least 0, not -1'),
    ("mkd", "diagonal", 1, '"diagonal": must be above 0 and below 1, not 1'),
    ("mkd", "diagonal", 0, '"diagonal": must be above 0 and below 1, not 0'),
    ("hard_label", "label_smoothing", 1, '"label_smoothing": must be at least 0 and below 1, not 1'),
    ("hard_label", "label_smoothing", -0.1, '"label_smoothing": must be at least 0 and below 1, not -0.1'),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), BAD, ids=[f"{case[0]} {case[1]}" for case in BAD])
def test_bad_values(name, key, value, message, trained):
    with pytest.raises(UserError) as error:
        build(trained, name, **{key: value})
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


# Recovery of perturbed answers


def certain(rows, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*rows, classes, dtype=torch.float64, generator=generator)).softmax(-1)


def written_recover(q, table, answers):
    found = []
    for one, rows, perturbed in zip(q.tolist(), table.tolist(), answers.tolist(), strict=True):
        distances = [sum(abs(a - b) for a, b in zip(own, one, strict=True)) for own in perturbed]
        same = [own.index(max(own)) == one.index(max(one)) for own in perturbed]
        if not any(same):
            same = [True] * len(same)
        nearest = min(d for d, ok in zip(distances, same, strict=True) if ok)
        near = [row for row, d, ok in zip(rows, distances, same, strict=True) if ok and d <= max(0.01, nearest)]
        found.append([sum(column) / len(near) for column in zip(*near, strict=True)])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.0, 0.001, 1.0])
def test_recover(spread):
    q, table = certain((30,)), certain((30, 20), seed=1)
    answers = (1 - spread) * q[:, None] + spread * certain((30, 20), seed=2)
    torch.testing.assert_close(recover(q, table, answers), written_recover(q, table, answers))


def test_recover_where_the_highest_class_is_nowhere():
    q = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    table = torch.tensor([[[0.3, 0.7], [0.1, 0.9]]], dtype=torch.float64)
    assert recover(q, table, table)[0].tolist() == pytest.approx([0.3, 0.7])


def recovering(trained, **keys):
    return build_small("recover", keys, trained / "baseline/teacher/best_model.tar")


def test_where_the_rule_does_nothing_the_answer_is_nearly_what_is_recovered(trained):
    own, loader, _ = recovering(trained)
    assert own.losses(*next(iter(loader)))["moved"] < 0.01


@pytest.mark.parametrize("prior", ["answers", "student"])
def test_tables_are_drawn_around_the_prior(prior, trained):
    own, _, _ = recovering(trained, samples=4000, prior=prior)
    q, others = certain((3,), 10).float(), certain((3,), 10, seed=1).float()
    table = own.table(q, others)
    assert table.shape == (3, 4001, 10) and torch.equal(table[:, 0], q)
    torch.testing.assert_close(table[:, 1:].mean(1), others, rtol=0.05, atol=0.005)
    variance = others * (1 - others) / (80 + 1)  # variance of a Dirichlet distribution with c C = 80
    torch.testing.assert_close(table[:, 1:].var(1), variance, rtol=0.25, atol=2e-4)


def test_most_of_a_mild_perturbation_is_undone(trained):
    """The distance of recovered answers to the teacher's is at most half that of the rule's answers."""
    own, _, _ = recovering(trained, release="reverse_sigmoid", samples=4000)
    torch.manual_seed(0)
    p = (3 * torch.randn(20, 10)).softmax(1)
    q = reverse_sigmoid(p.log(), 0.21, 0.2).softmax(1)
    table = own.table(q, p)
    answers = own.teacher.answer(table.flatten(0, 1).log()).softmax(1).view_as(table)
    found = recover(q, table, answers)
    assert (found - p).abs().sum(1).mean() < (q - p).abs().sum(1).mean() / 2


@pytest.mark.parametrize("release", ["logits", "stingy", "reverse_sigmoid", "modelguard", "poe"])
@pytest.mark.parametrize("prior", ["answers", "student"])
def test_recover_trains_against_every_rule(prior, release, trained):
    own, loader, optimizer = recovering(trained, release=release, prior=prior, samples=8)
    values = engine.train_epoch(own, own.losses, loader, optimizer, "")[0].values()
    assert all(abs(value) < 1e3 for value in values.values()) and 0 <= values["moved"] <= 2


BAD_RECOVER = {"samples": 0, "concentration": 0, "prior": "teacher"}


@pytest.mark.parametrize("key", BAD_RECOVER)
def test_bad_values_of_recover(key, trained):
    with pytest.raises(UserError) as error:
        recovering(trained, **{key: BAD_RECOVER[key]})
    assert f'"{key}": ' in str(error.value) and len(str(error.value).splitlines()) == 1
