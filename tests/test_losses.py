"""The losses are compared with the papers' equations, which are written term by term in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from method.attack.kd import kd_loss
from method.defend.nasty import nasty_loss
from utils.losses import cross_entropy, kl

SETTINGS = [(1.0, 0.3), (4.0, 0.04), (4.0, 0.9), (20.0, 0.005)]  # (T, weight or alpha)


def logits(seed, rows=5, classes=7):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, classes, dtype=torch.float64, generator=generator)).requires_grad_()


LABELS = torch.tensor([0, 6, 3, 3, 1])


def softmax(row, T):
    exponentials = [math.exp(z / T) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def written_kl(p_rows, q_rows, T):
    """(1/N) Σ_rows Σ_classes p log(p/q)"""
    total = 0.0
    for p_row, q_row in zip(p_rows, q_rows, strict=True):
        for p, q in zip(softmax(p_row, T), softmax(q_row, T), strict=True):
            total += p * math.log(p / q)
    return total / len(p_rows)


def written_ce(rows, labels):
    return sum(-math.log(softmax(row, 1)[label]) for row, label in zip(rows, labels, strict=True)) / len(rows)


def slope(function, rows):
    """The gradient of a function of nested lists by central differences."""
    gradient = torch.zeros(len(rows), len(rows[0]), dtype=torch.float64)
    for i, row in enumerate(rows):
        for j, middle in enumerate(row):
            values = []
            for row[j] in (middle + 1e-5, middle - 1e-5):
                values.append(function(rows))
            row[j] = middle
            gradient[i, j] = (values[0] - values[1]) / 2e-5
    return gradient


def check(value, written, *arguments):
    """Compare the scalar `value` and its gradients with a function of nested lists. arguments: tensors."""
    assert value.dtype == torch.float64 and value.dim() == 0
    lists = [argument.tolist() for argument in arguments]
    assert value.item() == pytest.approx(written(*lists), rel=1e-12)
    gradients = torch.autograd.grad(value, [a for a in arguments if a.requires_grad])
    for k, gradient in zip([k for k, a in enumerate(arguments) if a.requires_grad], gradients, strict=True):
        expected = slope(lambda rows, k=k: written(*lists[:k], rows, *lists[k + 1 :]), lists[k])
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_kl(T):
    p, q = logits(0), logits(1)
    check(kl(p, q, T), lambda p, q: written_kl(p, q, T), p, q)


def test_kl_is_not_symmetric_zero_for_equals_and_survives_certainty():
    p, q = logits(0), logits(1)
    assert abs(kl(p, q) - kl(q, p)) > 0.1
    assert kl(p, p + 5).item() == pytest.approx(0, abs=1e-12)
    certain = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    assert torch.autograd.grad(kl(certain, torch.zeros(1, 2)), certain)[0].isfinite().all()
    assert kl(certain, torch.zeros(1, 2)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    def written(rows):
        share = smoothing / 7  # target of each class; the label has the rest in addition
        total = 0.0
        for row, label in zip(rows, LABELS.tolist(), strict=True):
            for c, p in enumerate(softmax(row, 1)):
                total -= (share + (1 - smoothing) * (c == label)) * math.log(p)
        return total / len(rows)

    rows = logits(0)
    check(cross_entropy(rows, LABELS, smoothing), written, rows)


@pytest.mark.parametrize(("T", "weight"), SETTINGS)
def test_nasty_loss_is_equation_2(T, weight):
    def written(own, adversary):
        return written_ce(own, LABELS.tolist()) - weight * T**2 * written_kl(own, adversary, T)

    own, adversary = logits(0), logits(1).detach()
    loss, ce, divergence = nasty_loss(own, adversary, LABELS, T, weight)
    check(loss, written, own, adversary)
    assert ce.item() == pytest.approx(written_ce(own.tolist(), LABELS.tolist()), rel=1e-12)
    assert divergence.item() == pytest.approx(T**2 * written_kl(own.tolist(), adversary.tolist(), T), rel=1e-12)


@pytest.mark.parametrize(("T", "alpha"), SETTINGS)
def test_kd_loss_is_equation_1(T, alpha):
    def written(student, teacher):
        return alpha * T**2 * written_kl(teacher, student, T) + (1 - alpha) * written_ce(student, LABELS.tolist())

    student, teacher = logits(0), logits(1).detach()
    loss, distillation, ce = kd_loss(student, teacher, LABELS, T, alpha)
    check(loss, written, student, teacher)
    assert ce.item() == pytest.approx(written_ce(student.tolist(), LABELS.tolist()), rel=1e-12)
    assert distillation.item() == pytest.approx(T**2 * written_kl(teacher.tolist(), student.tolist(), T), rel=1e-12)


@pytest.mark.parametrize("loss", [nasty_loss, kd_loss])
def test_gradcheck(loss):
    other = logits(1).detach()
    assert torch.autograd.gradcheck(lambda own: loss(own, other, LABELS, 4.0, 0.3)[0], logits(0))


def test_gradient_of_the_nasty_divergence_goes_through_the_first_argument():
    """d KL(p ‖ q) / dz = p (log p/q − KL) / T, because p depends on z. For a constant p it would be zero."""
    T, own, adversary = 4.0, logits(0, rows=1), logits(1, rows=1).detach()
    label = LABELS[:1]
    with_term, without = (
        torch.autograd.grad(nasty_loss(own, adversary, label, T, weight)[0], own)[0] for weight in (1.0, 0.0)
    )
    p, q = softmax(own[0].tolist(), T), softmax(adversary[0].tolist(), T)
    divergence = written_kl(own.tolist(), adversary.tolist(), T)
    expected = [-(T**2) * a * (math.log(a / b) - divergence) / T for a, b in zip(p, q, strict=True)]
    torch.testing.assert_close((with_term - without)[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("loss", [nasty_loss, kd_loss])
def test_float32_agrees_with_float64(loss):
    own, other = logits(0).detach(), logits(1).detach()
    single = loss(own.float(), other.float(), LABELS, 20.0, 0.5)[0]
    torch.testing.assert_close(single.double(), loss(own, other, LABELS, 20.0, 0.5)[0], rtol=1e-5, atol=1e-6)


def test_released_form():
    """The loss as in the released code, with its order of the arguments of `F.kl_div`."""
    own, adversary, T = logits(0), logits(1).detach(), 4.0
    released = F.kl_div(F.log_softmax(adversary / T, 1), F.softmax(own / T, 1), reduction="batchmean") * T * T
    ours = nasty_loss(own, adversary, LABELS, T, 1.0)[2]
    (a,), (b,) = torch.autograd.grad(released, own), torch.autograd.grad(ours, own)
    torch.testing.assert_close(ours, released)
    torch.testing.assert_close(a, b)
