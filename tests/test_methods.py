"""Every method in method/, in each of its variants, is trained for a few steps on small networks."""

import dataclasses
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from projects import TINY, tiny_loader

import method
from method.datafree import DataFree, Generating
from training import engine, params
from training.zoo import Zoo
from utils import data
from utils.epochs import seed_everything
from utils.errors import UserError

NAMES = [name for members in method.names().values() for name in members]
DIGITS = data.DATASETS["digits"]
# Values for keys without a default. A new method needs a line only if `example` cannot guess a value from name or type.
EXAMPLES = {"temperature": 4, "weight": 0.1, "alpha": 0.9, "rho": 0.5}
# Values for keys whose default is too long or too large for a test.
GENERATOR = {"iterations_per_epoch": 3, "noise_size": 8, "generator_channels": 4}
SMALL = {
    "dafl": GENERATOR,
    "dfad": GENERATOR | {"student_steps": 2},
    "fast_datafree": {
        "rounds_per_epoch": 2,
        "student_steps": 2,
        "warm_up_rounds": 2,
        "generator_steps": 2,
        "noise_size": 8,
        "generator_channels": 4,
    },
    "deepinversion": {"image_batches": 3, "new_batches": 3, "inversion_steps": 2},
    "skeptical": {"kd_delay": 1},
}


def example(field, frozen):
    """A value for the key `field`, which has no default."""
    if field.name in EXAMPLES:
        return EXAMPLES[field.name]
    if field.name.endswith("_resume"):
        return str(frozen)
    if field.name.endswith("_model"):
        return "net"
    return next(iter(field.metadata.get("choices", [max(1, field.metadata.get("low", 1))])))


def rules():
    """The release rules in method/defend/ except that of sdb, which needs a key image; see test_defences.py."""
    return [name for name in method.files()["defend"] if method.is_release(name) and name != "sdb"]


def cases():
    """{id: (method, keys)}: methods with each choice of a key of their own."""
    found = {name: (name, {}) for name in NAMES}
    for name in NAMES:
        for field in dataclasses.fields(method.find(name).Params):
            taken = example(field, None) if field.default is dataclasses.MISSING else field.default
            choices = {not taken} if field.type is bool else set(field.metadata.get("choices", ())) - {taken}
            for choice in choices if field.name != "answers" else ():
                shown = field.name if field.type is bool else choice
                found[f"{name} {shown}"] = name, {field.name: choice}
    return dict(sorted(found.items()))


def raw_params(name, keys, frozen):
    """A params.json of the method `name` that has `keys`. frozen: the checkpoint of another network."""
    parts = [method.find(name).Params, *([method.find_release(keys["release"]).Params] if "release" in keys else [])]
    needed = [f for part in parts for f in dataclasses.fields(part) if f.default is dataclasses.MISSING]
    examples = {field.name: example(field, frozen) for field in needed}
    return TINY | {"method": name} | SMALL.get(name, {}) | examples | keys


CASES = cases()
RULES = {f"kd {rule}": ("kd", {"release": rule}) for rule in rules()} | {"kd label": ("kd", {"answers": "label"})}
every_method = pytest.mark.parametrize(("name", "keys"), CASES.values(), ids=CASES)
every_method_and_rule = pytest.mark.parametrize(("name", "keys"), (CASES | RULES).values(), ids=CASES | RULES)


class Witness(Zoo):
    """A zoo that keeps a list of the networks that it has frozen."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made = []

    def freeze(self, network):
        self.made.append(super().freeze(network))
        return self.made[-1]


def checked_params(name, keys, frozen, **changes):
    """The checked parameters of the method `name`. changes: of their attributes, without a check."""
    checked = params.check(raw_params(name, keys, frozen), Path("params.json"))
    return SimpleNamespace(**vars(checked) | changes)


def build(name, keys, frozen, bf16=False):
    """(the method, a loader, an optimizer)"""
    checked = checked_params(name, keys, frozen)
    seed_everything(0, epoch=-1)
    learner = method.find(name)(checked, Witness(DIGITS, torch.device("cpu"), bf16))
    loader = tiny_loader()
    return learner, loader, engine.make_optimizer(checked, learner.trained)


def steps(learner, optimizer, batches):
    """Train on `batches`, and return the terms of each step."""
    learner.trained.train()
    for batch in batches:
        terms = learner.losses(*batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        yield terms


@every_method_and_rule
def test_two_epochs(name, keys, frozen):
    """The terms of each step are finite numbers, the student changes, and frozen networks stay as they are.

    In bf16. test_cuda_graph.py trains in fp32.
    """
    learner, loader, optimizer = build(name, keys, frozen, bf16=True)
    start = [p.clone() for p in learner.trained.parameters()]
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in learner.zoo.made]

    def losses(*batch):
        terms = learner.losses(*batch)
        assert next(iter(terms)) == "loss"  # the first term is logged as "Train loss"
        for value in terms.values():
            assert value.shape == () and value.isfinite() and value.dtype == torch.float32
        return terms

    engine.train_epoch(learner, losses, loader, optimizer, name)
    learner.evaluate(loader)
    engine.train_epoch(learner, losses, loader, optimizer, name)
    assert not all(map(torch.equal, start, learner.trained.parameters()))
    for network, state in zip(learner.zoo.made, before, strict=True):
        assert not any(part.training for part in network.modules())
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    sources = [key for key in ("adversarial_resume", "teacher_resume", "proxy_resume") if hasattr(learner.params, key)]
    random = name == "sdb" or keys.get("release") == "mad"  # these also have a network with random weights
    assert len(before) == len(sources) + random


@every_method
def test_the_loss_of_a_batch_falls(name, keys, frozen):
    learner, loader, optimizer = build(name, keys, frozen)
    batch = next(iter(learner.batches(loader)))
    if isinstance(learner, Generating):
        learner.generator_optimizer.param_groups[0]["lr"] = 0.0  # so that the images stay the same
    first, *_, last = steps(learner, optimizer, [batch] * 12)
    assert last["loss"] < first["loss"]


ATTACKS = method.names()["attack"]
ANSWERS = {rule: {"release": rule} for rule in rules()} | {"label": {"answers": "label"}}


@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_meets_every_rule(attack, answers, frozen):
    if answers == "label" and issubclass(method.find(attack), DataFree):
        with pytest.raises(UserError, match=f'params.json: "answers": {attack} needs logits'):
            build(attack, ANSWERS[answers], frozen)
        return
    learner, loader, optimizer = build(attack, ANSWERS[answers], frozen)
    terms = next(steps(learner, optimizer, learner.batches(loader)))
    assert all(abs(value) < 1e4 for value in terms.values())
    assert all(p.isfinite().all() for p in learner.trained.parameters())


@pytest.mark.parametrize("name", [f"{kind}.{name}" for kind in method.FOLDERS for name in method.files()[kind]])
def test_header_says_paper_and_equation(name):
    header = importlib.import_module(f"method.{name}").__doc__
    assert re.search(r"\b(19|20)\d\d\b", header), "no paper with its year"
    assert re.search(r"min_|KL\(|CE\(| = ", header), "no equation"


def test_an_attack_must_not_have_the_name_of_a_defence(monkeypatch):
    monkeypatch.setattr(method, "files", lambda: {"defend": ["mine"], "attack": ["mine", "kd"]})
    with pytest.raises(UserError, match=r"method/defend/mine\.py and method/attack/mine\.py have the same name"):
        method.find("mine")
    assert method.kind("kd") == "attack"


def test_kinds():
    assert method.names()["scratch"] == ["scratch"]
    assert "nasty" in method.names()["defend"] and "kd" in method.names()["attack"]
    assert [method.kind(name) for name in ("scratch", "nasty", "kd")] == ["scratch", "defend", "attack"]
    assert len(NAMES) == len(set(NAMES))
