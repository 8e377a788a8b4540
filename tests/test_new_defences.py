"""cmim and the release rules: equations in float64, and properties."""

import itertools
import math

import pytest
import torch
from test_losses import LABELS, check, logits, softmax
from test_methods import NAMES, build, rules
from torch.nn.functional import normalize

from method.defend.cmim import Centroids, cmi
from method.defend.mad import EXTRA, mad
from method.defend.modelguard import MARGIN, OFFSET, modelguard
from method.defend.poe import product
from method.defend.reverse_sigmoid import reverse_sigmoid
from training import engine
from utils.errors import UserError

RULES = ["reverse_sigmoid", "modelguard", "poe", "mad"]


def certain(scale=1.0, classes=5, rows=40):
    """Random probabilities, double (rows, classes). For a small `scale` they are nearly uniform."""
    generator = torch.Generator().manual_seed(classes)
    return (scale * torch.randn(rows, classes, dtype=torch.float64, generator=generator)).softmax(1)


# CMIM


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_cmi_of_given_centroids(T):
    def written(rows, centroids):
        total = 0.0
        for row, label in zip(rows, LABELS.tolist(), strict=True):
            for p, q in zip(softmax(row, T), softmax(centroids[label], 1), strict=True):
                total += p * math.log(p / q)
        return T**2 * total / len(rows)

    log_centroids = logits(1, 7).detach().log_softmax(1)
    rows = logits(0)
    check(cmi(rows, [log_centroids], LABELS, [T])[0], written, rows, log_centroids)


def test_cmi_is_smallest_at_the_class_means():
    """The smallest value is the mutual information of image and answer given the class: H(mean) − mean of H."""
    rows = logits(0).detach()
    labels = torch.tensor([0, 0, 0, 1, 1])
    P = (rows / 4).softmax(1)
    means = torch.stack((P[:3].mean(0), P[3:].mean(0)))
    entropy = lambda p: -(p * p.log()).sum(-1)  # noqa: E731
    expected = (3 * entropy(means[0]) + 2 * entropy(means[1]) - entropy(P).sum()) / 5
    found = cmi(rows, [means.log()], labels, [4.0])[0] / 16
    assert found.item() == pytest.approx(expected.item())
    for seed in range(5):
        other = (means.log() + 0.1 * logits(seed, 2)).log_softmax(1)
        assert cmi(rows, [other], labels, [4.0])[0] / 16 > found


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_centroids_are_moving_averages_over_the_images_of_a_class(momentum):
    own, temperatures = Centroids([1.0, 4.0], 7, momentum).double(), [1.0, 4.0]
    sums = {T: [[0.0] * 7 for _ in range(7)] for T in temperatures}
    counts = [0.0] * 7
    batches = [(logits(seed).detach(), LABELS if seed != 1 else torch.tensor([2, 0, 0, 3, 2])) for seed in range(3)]
    for rows, labels in batches:
        own.update(rows, labels)
        counts = [momentum * n + (1 - momentum) * labels.tolist().count(c) for c, n in enumerate(counts)]
        for T, c, k in itertools.product(temperatures, range(7), range(7)):
            batch = sum(softmax(z, T)[k] for z, y in zip(rows.tolist(), labels.tolist(), strict=True) if y == c)
            sums[T][c][k] = momentum * sums[T][c][k] + (1 - momentum) * batch
    for T, Q in zip(temperatures, own.log().exp().tolist(), strict=True):
        for c in range(7):
            expected = [value / counts[c] for value in sums[T][c]] if counts[c] else [1 / 7] * 7
            assert Q[c] == pytest.approx(expected)


def test_a_batch_without_a_class_leaves_its_centroid():
    own = Centroids([4.0], 7, 0.5)
    own.update(logits(0).detach().float(), LABELS)
    before = own.log()
    for _ in range(50):
        own.update(logits(1).detach().float(), torch.full((5,), 6))
    torch.testing.assert_close(own.log()[:, [0, 1, 3]], before[:, [0, 1, 3]])
    assert not torch.allclose(own.log()[:, 6], before[:, 6])


def test_cmim_temperatures(frozen):
    for keys, expected in (({}, [1, 20**0.25, 20**0.5, 20**0.75, 20]), ({"temperatures": 1}, [1])):
        assert build("cmim", keys, frozen)[0].temperatures == pytest.approx(expected)


def test_cmim_gathers_the_answers_of_a_class(frozen):
    found = []
    for weight in (0.0, 1.0):
        learner, loader, optimizer = build("cmim", {"weight": weight, "learning_rate": 0.03}, frozen)
        for epoch in range(20):
            loader.set_epoch(epoch)
            terms = engine.train_epoch(learner, learner.losses, loader, optimizer, "")[0].values()
        assert terms["loss"] == pytest.approx(terms["ce"] + weight * terms["cmi"])
        found.append(learner.evaluate(loader)["cmi"])
    assert found[1] < found[0] / 2


# Reverse sigmoid


@pytest.mark.parametrize(("beta", "gamma"), [(0.21, 0.2), (0.02, 0.2), (1.0, 1.0), (0.7, 0.05)])
def test_reverse_sigmoid(beta, gamma):
    z = logits(0).detach()
    for row, found in zip(z.tolist(), reverse_sigmoid(z, beta, gamma).exp().tolist(), strict=True):
        perturbed = []
        for p in softmax(row, 1):
            inverse = math.log(p / (1 - p))
            perturbed.append(p - beta * (1 / (1 + math.exp(-gamma * inverse)) - 0.5))
        assert found == pytest.approx([p / sum(perturbed) for p in perturbed], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reverse_sigmoid_of_certain_answers(dtype):
    """The answers are positive and finite and have a gradient, also for very confident teachers."""
    z = torch.tensor([[500.0, 0.0, -500.0], [40.0, 0.0, 20.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    answer = reverse_sigmoid(z, 0.21, 0.2)
    assert answer.isfinite().all() and torch.autograd.grad(answer[:, 0].sum(), z)[0].isfinite().all()
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(3, dtype=dtype))
    assert answer[0].exp()[0] < 0.85 and answer[2].exp().tolist() == pytest.approx([1 / 3] * 3)


def test_reverse_sigmoid_reverses_the_order_of_unlikely_classes():
    p = torch.tensor([[0.98, 0.0009, 0.0191 - 0.001, 0.001]], dtype=torch.float64)
    answer = reverse_sigmoid((p / p.sum()).log(), 0.21, 0.2)[0]
    assert answer.argmax() == 0 and answer[1] > answer[3] > answer[2]


# ModelGuard


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    [
        (0.2, [0.87, 0.015, 0.01, 0.004, 0.101]),
        (0.5, [0.72, 0.015, 0.01, 0.004, 0.251]),
        (1.0, [0.47, 0.015, 0.01, 0.0351, 0.4699]),
    ],
)
def test_modelguard_of_a_known_programme(epsilon, expected):
    p = torch.tensor([[0.97, 0.015, 0.01, 0.004, 0.001]], dtype=torch.float64)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
        found = modelguard(p[:, order], epsilon)[0].tolist()
        assert found == pytest.approx([expected[place] for place in order], abs=1e-9)


def cost(p, answer):
    return ((p + OFFSET).log() * answer).sum(-1)


def allowed(p, answer, epsilon, slack=1e-9):
    """Whether answers (…, C) satisfy every constraint of the linear program for one p (C,)."""
    top = answer[..., p.argmax()]
    rest = answer.index_select(-1, torch.tensor([k for k in range(len(p)) if k != p.argmax()])).amax(-1)
    ok = ((answer - p).abs().sum(-1) <= epsilon + slack) & (top - rest >= MARGIN - slack)
    return ok & (answer.amin(-1) >= -slack) & ((answer.sum(-1) - 1).abs() <= slack)


@pytest.mark.parametrize("epsilon", [0.2, 0.9, 2.0])
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_modelguard_is_at_least_as_good_as_every_answer_of_a_grid(scale, epsilon):
    steps = 60
    grid = [(i, j, k, steps - i - j - k) for i, j, k in itertools.product(range(steps + 1), repeat=3)]
    answers = torch.tensor([row for row in grid if row[3] >= 0], dtype=torch.float64) / steps
    rows = certain(scale, classes=4, rows=20)
    for p, found in zip(rows, modelguard(rows, epsilon), strict=True):
        assert allowed(p, found, epsilon, slack=1e-7)
        costs = cost(p, answers[allowed(p, answers, epsilon)])
        if len(costs):
            assert cost(p, found) <= costs.min() + 1e-7
            if epsilon > 0.5:
                assert cost(p, found) > costs.min() - 40 / steps  # 40 / steps: effect of the spacing of the grid


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("classes", [2, 3, 10, 30])
def test_modelguard_solves_the_linear_programme(classes, epsilon):
    optimize = pytest.importorskip("scipy.optimize")
    unit = torch.eye(classes, dtype=torch.float64)
    for scale in (0.3, 1.0, 4.0):
        answers = certain(scale, classes, rows=10)
        for p, found in zip(answers, modelguard(answers, epsilon), strict=True):
            bounds, rows = torch.cat((p, -p)), torch.cat((torch.cat((unit, -unit), 1), torch.cat((-unit, -unit), 1)))
            margins = torch.cat((unit - unit[p.argmax()], torch.zeros_like(unit)), 1)
            margins = margins[[k for k in range(classes) if k != p.argmax()]]
            budget = torch.cat((torch.zeros(1, classes), torch.ones(1, classes)), 1)
            limits = torch.cat((bounds, torch.tensor([-MARGIN] * (classes - 1) + [epsilon], dtype=torch.float64)))
            total = torch.cat((torch.ones(1, classes), torch.zeros(1, classes)), 1)
            costs = torch.cat(((p + OFFSET).log(), torch.zeros(classes)))
            whole = (part.numpy() for part in (costs, torch.cat((rows, margins, budget)), limits, total))
            done = optimize.linprog(*whole, b_eq=[1.0], bounds=(0, 1))
            assert allowed(p, found, epsilon, slack=1e-7)
            assert cost(p, found).item() == pytest.approx(done.fun, abs=1e-7)


def test_modelguard_without_a_budget_changes_nothing_and_breaks_ties():
    p = certain(3.0)
    torch.testing.assert_close(modelguard(p, 0.0), p, rtol=0, atol=1e-9)
    tied = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64)
    assert modelguard(tied, 0.5).argmax() == 0  # like argmax, it chooses the first


# Product of experts


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_product_of_experts(gamma):
    own, proxy = logits(0).detach(), logits(1).detach()
    for t, p, found in zip(own.tolist(), proxy.tolist(), product(own, proxy, gamma).tolist(), strict=True):
        weights = [a ** (1 - gamma) * b**gamma for a, b in zip(softmax(t, 1), softmax(p, 1), strict=True)]
        assert softmax(found, 1) == pytest.approx([w / sum(weights) for w in weights])


def test_the_proxy_answers_beside_the_teacher(trained):
    frozen, proxy = trained / "baseline/teacher/best_model.tar", trained / "kd_nasty/nasty/best_model.tar"
    images, answers = torch.randn(4, 3, 32, 32), {}
    for share in (0.0, 0.5, 1.0):
        learner = build("kd", {"release": "poe", "proxy_resume": str(proxy), "proxy_share": share}, frozen)[0]
        answers[share] = learner.teacher(images)
        features, logits_again = learner.teacher(images, with_features=True)
        assert torch.equal(logits_again, answers[share])
        assert torch.equal(features, learner.teacher.teacher(images, with_features=True)[0])
        assert len(learner.zoo.origins) == 2  # teacher and proxy: a continued run refuses another proxy
    torch.testing.assert_close(answers[0.5], (answers[0.0] + answers[1.0]) / 2)
    torch.testing.assert_close(answers[0.0], learner.teacher.teacher(images))
    assert not torch.allclose(answers[0.0], answers[1.0])


# MAD


def written_vertex(chosen, top, classes):
    weights = [(k in chosen) / len(chosen) + EXTRA * (k == top) for k in range(classes)]
    return torch.tensor(weights, dtype=torch.float64) / (1 + EXTRA)


class Surrogate:
    """A last layer and its input. The gradients of the layer are the rows of G."""

    def __init__(self, classes, seed):
        generator = torch.Generator().manual_seed(seed)
        self.h = torch.rand(6, dtype=torch.float64, generator=generator)
        self.W = torch.randn(classes, 6, dtype=torch.float64, generator=generator).requires_grad_()
        self.q = (self.W @ self.h).softmax(0).detach()
        losses = -(self.W @ self.h).log_softmax(0)
        each = torch.eye(classes, dtype=torch.float64)
        self.G = torch.autograd.grad(losses, self.W, each, is_grads_batched=True)[0].flatten(1)

    def deviation(self, v, p):
        return float(self.deviations(v[None], p))

    def deviations(self, rows, p):
        """Of each row."""
        return (normalize(rows @ self.G, dim=1) - normalize(p @ self.G, dim=0)).square().sum(1)


def mixed(p, vertex, epsilon):
    return p + min(1.0, epsilon / float((p - vertex).abs().sum())) * (vertex - p)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("classes", [3, 6, 10])
def test_mad_of_few_classes_compares_all_sets(classes, epsilon):
    for seed, p in enumerate(certain(2.0, classes, rows=5)):
        own, top = Surrogate(classes, seed), int(p.argmax())
        others = [k for k in range(classes) if k != top]
        sets = [{top, *some} for size in range(classes) for some in itertools.combinations(others, size)]
        found = [written_vertex(chosen, top, classes) for chosen in sets]
        best = max(found, key=lambda v: own.deviation(v, p))
        answer = mad(p[None], own.q[None], epsilon)[0]
        torch.testing.assert_close(answer, mixed(p, best, epsilon), rtol=1e-9, atol=1e-9)


def test_mad_of_two_classes():
    """With two classes, several sets may have the same deviation. So the test compares the deviations."""
    for seed, p in enumerate(certain(2.0, 2)):
        own, top = Surrogate(2, seed), int(p.argmax())
        found = [written_vertex(chosen, top, 2) for chosen in ({top}, {0, 1})]
        vertex = mad(p[None], own.q[None], 2.0)[0]
        assert own.deviation(vertex, p) == pytest.approx(max(own.deviation(v, p) for v in found), abs=1e-9)


@pytest.mark.parametrize("classes", [11, 100, 600])
def test_mad_of_many_classes_grows_a_set(classes):
    for seed, p in enumerate(certain(2.0, classes, rows=2)):
        own, top = Surrogate(classes, seed), int(p.argmax())
        chosen = {top}
        for _ in range(1024 // classes):
            grown = [chosen, *(chosen | {k} for k in range(classes))]
            rows = torch.stack([written_vertex(some, top, classes) for some in grown])
            chosen = grown[own.deviations(rows, p).argmax()]
        answer = mad(p[None], own.q[None], 1.0)[0]
        expected = mixed(p, written_vertex(chosen, top, classes), 1.0)
        torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", [10, 100])
def test_mad_keeps_its_promises(classes):
    p, q = certain(3.0, classes), certain(0.1, classes).flip(0)
    for epsilon in (0.0, 0.3, 1.0, 2.0):
        answer = mad(p, q, epsilon)
        assert (answer.argmax(1) == p.argmax(1)).all() and answer.min() >= 0
        assert (answer - p).abs().sum(1).max() <= epsilon + 1e-9
        torch.testing.assert_close(answer.sum(1), torch.ones(len(p), dtype=torch.float64))


def test_mads_surrogate_is_a_function_of_the_seed_and_leaves_random_numbers_alone(trained):
    frozen, images, found = trained / "baseline/teacher/best_model.tar", torch.randn(4, 3, 32, 32), []
    rule = {"release": "mad", "surrogate_model": "net"}
    for keys in (rule, rule, rule | {"seed": 1}, {}):
        learner = build("kd", keys, frozen)[0]
        found.append((learner.teacher(images), next(learner.model.parameters())))
    assert torch.equal(found[0][0], found[1][0]) and not torch.equal(found[0][0], found[2][0])
    assert torch.equal(found[0][1], found[3][1])


# Every rule


def rule(name, keys, frozen):
    return build("kd", {"release": name} | keys, frozen)[0].teacher


@pytest.mark.parametrize("name", ["reverse_sigmoid", "modelguard"])
def test_answers_are_log_probabilities_that_keep_the_highest_class(name, trained):
    teacher = rule(name, {}, trained / "baseline/teacher/best_model.tar")
    for classes, scale in itertools.product((10, 100), (0.5, 3.0, 10.0)):
        beta = {"beta": 0.21 if classes == 10 else 0.02} if name == "reverse_sigmoid" else {}
        vars(teacher.params).update(beta)
        z = certain(scale, classes, rows=200).log().float()
        other = (z.argmax(1, keepdim=True) + 1) % classes
        z[100:] = z.scatter(1, other, z.amax(1, keepdim=True))[100:]  # two classes are highest
        answer = teacher.answer(z)
        assert answer.dtype == torch.float32 and answer.isfinite().all()
        torch.testing.assert_close(answer.exp().sum(1), torch.ones(200), rtol=1e-5, atol=1e-5)
        assert (answer.argmax(1) == z.argmax(1)).all() and not torch.allclose(answer, z)
        torch.testing.assert_close(teacher.answer(z[:100] + 7).exp(), answer[:100].exp(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_images_have_a_gradient_through_the_rule(name, trained):
    teacher = rule(name, {}, trained / "baseline/teacher/best_model.tar")
    images = torch.randn(4, 3, 32, 32, requires_grad=True)
    gradient = torch.autograd.grad(teacher(images)[:, 0].sum(), images)[0]
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("name", [*rules(), "logits"])
def test_a_rule_asks_for_logits_only(name, frozen):
    """A network of other code has no features."""
    learner, loader, _ = build("kd", {"release": name}, frozen)
    batch = next(iter(loader))
    expected, network = learner.losses(*batch), learner.teacher.teacher
    learner.teacher.teacher = lambda images: network(images)
    assert learner.losses(*batch) == expected


BAD = [
    ("cmim", "weight", -1, '"weight": must be at least 0, not -1'),
    ("cmim", "temperatures", 0, '"temperatures": must be at least 1, not 0'),
    ("cmim", "hottest", 0.5, '"hottest": must be at least 1, not 0.5'),
    ("cmim", "centroid_momentum", 1, '"centroid_momentum": must be at least 0 and below 1, not 1'),
    ("reverse_sigmoid", "beta", 0, '"beta": must be at most 1 and above 0, not 0'),
    ("reverse_sigmoid", "beta", 1.5, '"beta": must be at most 1 and above 0, not 1.5'),
    ("reverse_sigmoid", "sharpness", 0, '"sharpness": must be at most 1 and above 0, not 0'),
    ("poe", "proxy_share", 1.5, '"proxy_share": must be at least 0 and at most 1, not 1.5'),
    ("poe", "proxy_model", "nett", '"proxy_model": unknown network "nett"'),
    ("poe", "proxy_resume", "no/best_model.tar", "no/best_model.tar: there is no such checkpoint"),
    ("mad", "surrogate_model", "nett", '"surrogate_model": unknown network "nett"'),
    ("mad", "epsilon", 3, '"epsilon": must be at least 0 and at most 2, not 3'),
    ("modelguard", "epsilon", -0.1, '"epsilon": must be at least 0 and at most 2, not -0.1'),
    ("modelguard", "epsilon", 2.5, '"epsilon": must be at least 0 and at most 2, not 2.5'),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), BAD, ids=[f"{case[0]} {case[1]}" for case in BAD])
def test_bad_values(name, key, value, message, frozen):
    with pytest.raises(UserError) as error:
        build(name, {key: value}, frozen) if name in NAMES else rule(name, {key: value}, frozen)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1
