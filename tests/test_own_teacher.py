"""An audit of a teacher that other code has trained, and networks of other code: what works and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from processes import command
from projects import copy_code, grow, script, set_root
from torch import nn

import model
from study import autosteal, benchmark, cards, own_teacher, protocol, scoring
from study.cases import Case
from training import params
from training.zoo import Zoo
from utils import checkpoint, data
from utils.errors import UserError

DIGITS = data.DATASETS["digits"]
MINI = {
    "title": "Miniature",
    "source": "nobody, 2031",
    "template": {"defended": "mini/kd_nasty/student", "undefended": "mini/kd_normal/student"},
    "alone": "mini/baseline/student",
    "attacks": {"kd": {}},
    "presets": ["few"],
    "draws": 2,
    "seeds": [0, 1],
    "tuning_seed": 100,
    "defences": {"none": {"student": "mini/kd_normal/student"}},
}
CODE = '''"""Networks of another project."""

import torch
from helper import Small  # a file beside this one
from torch import nn


def network(num_classes):
    return Small(num_classes)


def with_softmax(num_classes):
    return nn.Sequential(Small(num_classes), nn.Softmax(1))


def always_a_thousand(num_classes):
    return Small(1000)


class Wrapped(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.inner = Small(num_classes)

    def forward(self, images):
        return self.inner(images)


class Restless(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.inner = Small(num_classes)

    def forward(self, images):
        return self.inner.train()(images)


class Dictionary(Restless):
    def forward(self, images):
        return {"logits": self.inner(images)}


class Flat(nn.Module):
    """A network for images of 28x28."""

    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(3 * 28 * 28, num_classes)

    def forward(self, images):
        return self.linear(images.flatten(1))


class Broken(nn.Module):
    def __init__(self, num_classes):
        raise OSError("no such device")


def nothing(num_classes):
    return num_classes
'''
HELPER = """from torch import nn


class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 5, stride=2), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 14 * 14, num_classes)

    def forward(self, images):
        return self.fc(self.bn(self.conv(images)).relu().flatten(1))
"""
FOREIGN = {}  # the classes of HELPER
exec(HELPER, FOREIGN)


@pytest.fixture(scope="module")
def foreign_weights():
    """A network that a plain loop of PyTorch has trained on digits, without code of this project."""
    digits = data.load("digits", "", "cpu")
    mean, std = torch.tensor(DIGITS.mean), torch.tensor(DIGITS.std)
    images = ((digits.train.images / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    network = FOREIGN["Small"](10)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(7):
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), digits.train.labels[batch]).backward()
            optimizer.step()
    return network.state_dict()


@pytest.fixture(scope="module")
def project(tmp_path_factory, foreign_weights):
    root = copy_code(tmp_path_factory.mktemp("project"))
    grow(root / "experiments/mini", Path("experiments/mini"), num_epochs=2)
    (root / "experiments/tables.json").write_text(json.dumps({"mini": MINI}))
    (root / "other").mkdir()
    (root / "other/nets.py").write_text(CODE)
    (root / "other/helper.py").write_text(HELPER)
    torch.save(foreign_weights, root / "other/mine.pt")
    return root


@pytest.fixture
def inside(project, monkeypatch):
    set_root(monkeypatch, project)
    monkeypatch.chdir(project)
    return project


def take(file, network="other/nets.py:network"):
    return own_teacher.import_teacher("mini", file, network, "")


# The audit


@pytest.fixture(scope="module")
def audit(project):
    flags = ["--teacher", "other/mine.pt", "--model", "other/nets.py:network", "--jobs", "1"]
    return command(project, "reproduce.py", "mini", *flags)


@pytest.mark.slow
def test_the_audit_of_a_foreign_teacher(audit, inside):
    assert audit.status == 0, audit.err
    (folder,) = (inside / "experiments/own").iterdir()
    found = [json.loads(line) for line in (folder / "cards.jsonl").read_text().splitlines()]
    assert [(card["defence"], card["preset"]) for card in found] == [("mine", "few"), ("none", "few")]
    card, control = found
    assert card["digest"] == cards.digest(card)
    assert card["source"] == "other/mine.pt, other/nets.py:network"
    accuracy, price = card["teacher"]["accuracy"], card["teacher"]["price"]
    assert accuracy[0] == accuracy[1] > 80 and price is None and card["teacher"]["undefended"] is None
    assert card["score"] == protocol.paired(card["yardstick"]["accuracy"], card["thief"]["accuracy"])
    assert card["yardstick"] == control["yardstick"] and control["teacher"]["price"]["mean"] == 0
    assert scoring.ONE_CHECKPOINT in card["flags"] and card["verdict"] in (
        "holds, price unknown",
        "does not hold",
        "not shown",
    )
    assert f"mine: {accuracy[0]:.2f} % of the test images" in audit.out and "unknown" in audit.out
    assert not (inside / "results/mini.cards.jsonl").exists()


@pytest.mark.slow
def test_its_students_have_one_teacher_and_their_own_seeds(audit, inside):
    assert audit.status == 0, audit.err
    seen = {}
    for path in (inside / "experiments/mini/kd_normal").glob("*/params.json"):
        raw = json.loads(path.read_text())
        if raw["teacher_resume"].startswith("experiments/own/"):
            seen.setdefault(raw["teacher_resume"], set()).add(raw.get("seed", 0))
            assert raw["teacher_model"] == "other/nets.py:network"
    (seeds,) = seen.values()
    assert seeds == {0, 1, 100}


@pytest.mark.slow
def test_a_repeated_audit_trains_nothing(audit, project):
    before = {path: path.stat().st_mtime_ns for path in (project / "experiments").rglob("*.tar")}
    flags = ["--teacher", "other/mine.pt", "--model", "other/nets.py:network", "--jobs", "1"]
    again = command(project, "reproduce.py", "mini", *flags)
    assert again.status == 0 and again.out.partition("preset  ")[2] == audit.out.partition("preset  ")[2] != ""
    assert {path: path.stat().st_mtime_ns for path in (project / "experiments").rglob("*.tar")} == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("mini --teacher missing.pt --model net", "there is no such checkpoint"),
        ("mini --teacher other/mine.pt", "does not say which network it holds; name it with --model"),
        ("mini --model net", "--model needs --teacher"),
        ("experiments/mini --teacher other/mine.pt", "--teacher and --model need a benchmark"),
        ("experiments/mini --presets insider", "--presets, --teacher and --model need a benchmark"),
    ],
)
def test_flags(flags, words, inside):
    done = script("reproduce.py", *flags.split())
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1, done.err


# The teacher is checked first


def accuracy_of(weights, **changes):
    file = Path("other/given.pt")
    torch.save(weights, file)
    return take(file, **changes)


LAYOUTS = {
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "params": ["no dictionary"]},
    "DataParallel": lambda weights: {f"module.{name}": weight for name, weight in weights.items()},
    "half precision": lambda weights: {name: weight.half() for name, weight in weights.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_checkpoints(layout, foreign_weights, inside):
    plain, found = take("other/mine.pt"), accuracy_of(LAYOUTS[layout](foreign_weights))
    assert abs(found.accuracy - plain.accuracy) < 0.5 and found.flags == ()
    assert (found.file.split("-")[-1] == plain.file.split("-")[-1]) == (layout != "half precision")
    weights = torch.load(inside / found.file, weights_only=True)["state_dict"]
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float32}


def test_probabilities_become_logits(foreign_weights, inside):
    found = accuracy_of(
        {f"0.{name}": weight for name, weight in foreign_weights.items()}, network="other/nets.py:with_softmax"
    )
    assert found.flags == (own_teacher.PROBABILITIES,) and found.accuracy == take("other/mine.pt").accuracy
    zoo = Zoo(DIGITS, torch.device("cpu"))
    plain = zoo.frozen("other/nets.py:network", take("other/mine.pt").file)
    images = torch.randn(8, 3, 32, 32)
    expected = plain(images).log_softmax(1)
    torch.testing.assert_close(
        zoo.frozen(found.network, found.file)(images), expected.clamp_min(-27.7), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("other/nets.py:always_a_thousand", r"weights do not fit .*fc.weight is \(10, 3136\), not \(1000, 3136\)"),
        ("other/nets.py:Flat", "weights do not fit"),
        ("other/nets.py:Broken", "failed: OSError: no such device"),
        ("other/nets.py:nothing", "returned int, not a torch.nn.Module"),
        ("other/nets.py:netwrok", 'has no function netwrok; did you mean "network"'),
        ("other/nests.py:network", "there is no file .*other/nests.py"),
        ("no_such_package.nets:network", "cannot be imported: ModuleNotFoundError"),
        ("resnet18", "weights do not fit a ResNet for 10 classes"),
        ("resnet81", 'unknown network "resnet81"'),
    ],
)
def test_networks_that_do_not_fit(network, words, inside):
    with pytest.raises(UserError, match=words) as error:
        take("other/mine.pt", network)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("always_a_thousand", r"answers of shape \(32, 1000\), not \(32, 10\): digits has 10 classes"),
        ("Restless", "answers an image differently in another batch, .* in train mode"),
        ("Dictionary", "returns dict, not a tensor of logits"),
        ("Flat", "fails for images of 3x32x32: RuntimeError"),
    ],
)
def test_answers_that_are_no_logits(name, words, inside, monkeypatch):
    monkeypatch.setattr(own_teacher, "CHECKED_IMAGES", 32)
    network = f"other/nets.py:{name}"
    torch.save(model.build(network, 10).state_dict(), "other/given.pt")
    with pytest.raises(UserError, match=words) as error:
        take("other/given.pt", network)
    assert "\n" not in str(error.value)


def test_a_class_and_a_package(foreign_weights, inside):
    """A class is a function of the number of classes, too; and functions are found in installed packages."""
    wrapped = {f"inner.{name}": weight for name, weight in foreign_weights.items()}
    assert accuracy_of(wrapped, network="other/nets.py:Wrapped").accuracy == take("other/mine.pt").accuracy
    torch.save(model.build("torchvision.models:shufflenet_v2_x0_5", 10).state_dict(), "other/given.pt")
    found = take("other/given.pt", "torchvision.models:shufflenet_v2_x0_5")
    assert found.name == "given" and found.flags[0].startswith("the teacher is hardly better than a guess")


def test_weights_that_are_nan(foreign_weights, inside):
    with pytest.raises(UserError, match=r"fc\.bias: .*NaN"):
        accuracy_of(foreign_weights | {"fc.bias": torch.full((10,), torch.nan)})


def test_a_teacher_that_guesses_is_flagged(foreign_weights, inside):
    found = accuracy_of(foreign_weights | {"fc.weight": torch.zeros(10, 3136)})
    assert "hardly better than a guess" in found.flags[0]


def test_whole_modules_are_not_unpickled(inside):
    torch.save(nn.Sequential(nn.Linear(2, 2)), "other/given.pt")
    with pytest.raises(UserError, match="holds more than plain tensors; not loaded"):
        take("other/given.pt")


def test_a_checkpoint_cannot_name_code(foreign_weights, inside):
    torch.save({"state_dict": foreign_weights, "params": {"model_name": "other/nets.py:network"}}, "other/given.pt")
    with pytest.raises(UserError, match="name it with --model"):
        take("other/given.pt", None)


def test_a_checkpoint_of_this_project_says_its_network(inside):
    network = model.build("net", 10, num_channels=4)
    params_of = {"model_name": "net", "num_channels": 4}
    checkpoint.save(inside / "other/best_model.tar", {"state_dict": network.state_dict(), "params": params_of})
    found = take("other/best_model.tar", None)
    assert (found.name, found.network) == ("other", "net")


def test_two_processes_copy_one_teacher(inside, monkeypatch):
    """The second process writes its copy while the first has not renamed its own."""
    arguments = inside / "other/shared.pt", "net", model.build("net", 10), {}

    def other_process(_):
        monkeypatch.setattr(os, "fsync", lambda file: None)
        own_teacher.write_copy(*arguments)

    monkeypatch.setattr(os, "fsync", other_process)
    copy = inside / own_teacher.write_copy(*arguments)
    assert checkpoint.load(copy)["params"] == {"model_name": "net"} and list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize("channels", ["many", -4, [4], torch.ones(2)], ids=str)
def test_options_that_fit_no_network(channels, inside):
    weights, options = model.build("net", 10, num_channels=4).state_dict(), {"num_channels": channels}
    torch.save({"state_dict": weights, "params": {"model_name": "net"} | options}, "other/given.pt")
    with pytest.raises(UserError, match=r"given\.pt: no net can be built with its params .*num_channels"):
        take("other/given.pt", None)


def test_the_copy_depends_on_the_weights_the_name_and_the_code(foreign_weights, inside):
    files = [take("other/mine.pt").file, take("other/mine.pt", "other/../other/nets.py:network").file]
    assert files[0] == files[1]
    files.append(accuracy_of(foreign_weights | {"fc.bias": torch.zeros(10)}).file)
    other = inside / "other/nets2.py"
    other.write_text(CODE)
    files.append(take("other/mine.pt", "other/nets2.py:network").file)
    other.write_text(CODE + "\n# changed\n")
    files.append(take("other/mine.pt", "other/nets2.py:network").file)
    assert len(set(files)) == 4


# Attacks on a network of other code


def test_attacks_that_need_more_than_logits_say_so(inside):
    torch.manual_seed(0)
    torch.save(model.build("other/nets.py:Flat", 10).state_dict(), "other/flat.pt")
    own = own_teacher.OwnTeacher("flat", "flat.pt", "other/nets.py:Flat", "other/flat.pt", 50.0)
    mini = benchmark.Benchmark("mini", None, presets=["no_data"], own=own)
    assert mini.rows == ["none", "flat"]
    case = Case("flat", "no_data")
    left_out = mini.left_out(case)
    assert "dafl needs its features" in left_out["dafl"] and "has no batch norm" in left_out["deepinversion"]
    assert list(mini.attacks(case)) == ["dfad"] and mini.left_out(Case("none", "no_data")) == {}
    assert {drawn["method"] for drawn in autosteal.draw_thieves(mini.attacks(case), 9, {"learning_rate": 1}, 0)} == {
        "dfad"
    }


def test_features_of_a_foreign_network_are_refused(inside):
    network = model.build("other/nets.py:network", 10)
    with pytest.raises(UserError, match="returns only logits; this method needs its features"):
        network(torch.randn(2, 3, 32, 32), with_features=True)


def test_building_a_foreign_network_leaves_the_generator_alone(inside):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model.build("other/nets.py:network", 10)
    assert torch.equal(before, torch.get_rng_state())


def test_a_function_of_a_package_can_be_trained(inside):
    raw = json.loads((inside / "experiments/mini/baseline/student/params.json").read_text())
    del raw["num_channels"]
    checked = params.check(raw | {"model_name": "torchvision.models:shufflenet_v2_x0_5"}, "params.json")
    assert checked.optimizer == "sgd" and checked.probabilities is False
