"""recover: the estimate compared with its definition in float64, and recovery from known rules."""

import pytest
import torch
from test_methods import build

from method.attack.recover import recover
from method.defend.reverse_sigmoid import reverse_sigmoid
from training import engine
from utils.errors import UserError


def certain(rows, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*rows, classes, dtype=torch.float64, generator=generator)).softmax(-1)


def written(q, table, answers):
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
    torch.testing.assert_close(recover(q, table, answers), written(q, table, answers))


def test_recover_where_the_highest_class_is_nowhere():
    q = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    table = torch.tensor([[[0.3, 0.7], [0.1, 0.9]]], dtype=torch.float64)
    assert recover(q, table, table)[0].tolist() == pytest.approx([0.3, 0.7])


def learner(trained, **keys):
    return build("recover", keys, trained / "baseline/teacher/best_model.tar")


def test_where_the_rule_does_nothing_the_answer_is_nearly_what_is_recovered(trained):
    own, loader, _ = learner(trained)
    assert own.losses(*next(iter(loader)))["moved"] < 0.01


@pytest.mark.parametrize("prior", ["answers", "student"])
def test_tables_are_drawn_around_the_prior(prior, trained):
    own, _, _ = learner(trained, samples=4000, prior=prior)
    q, others = certain((3,), 10).float(), certain((3,), 10, seed=1).float()
    table = own.table(q, others)
    assert table.shape == (3, 4001, 10) and torch.equal(table[:, 0], q)
    torch.testing.assert_close(table[:, 1:].mean(1), others, rtol=0.05, atol=0.005)
    variance = others * (1 - others) / (80 + 1)  # variance of a Dirichlet distribution with c C = 80
    torch.testing.assert_close(table[:, 1:].var(1), variance, rtol=0.25, atol=2e-4)


def test_most_of_a_mild_perturbation_is_undone(trained):
    """The distance of recovered answers to the teacher's is at most half that of the rule's answers."""
    own, _, _ = learner(trained, release="reverse_sigmoid", samples=4000)
    torch.manual_seed(0)
    p = (3 * torch.randn(20, 10)).softmax(1)
    q = reverse_sigmoid(p.log(), 0.21, 0.2).softmax(1)
    table = own.table(q, p)
    answers = own.teacher.answer(table.flatten(0, 1).log()).softmax(1).view_as(table)
    found = recover(q, table, answers)
    assert (found - p).abs().sum(1).mean() < (q - p).abs().sum(1).mean() / 2


@pytest.mark.parametrize("release", ["logits", "stingy", "reverse_sigmoid", "modelguard", "poe"])
@pytest.mark.parametrize("prior", ["answers", "student"])
def test_it_trains_against_every_rule(prior, release, trained):
    own, loader, optimizer = learner(trained, release=release, prior=prior, samples=8)
    values = engine.train_epoch(own, own.losses, loader, optimizer, "")[0].values()
    assert all(abs(value) < 1e3 for value in values.values()) and 0 <= values["moved"] <= 2


BAD = {"samples": 0, "concentration": 0, "prior": "teacher"}


@pytest.mark.parametrize("key", BAD)
def test_bad_values(key, trained):
    with pytest.raises(UserError) as error:
        learner(trained, **{key: BAD[key]})
    assert f'"{key}": ' in str(error.value) and len(str(error.value).splitlines()) == 1
