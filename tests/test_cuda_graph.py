"""The key `cuda_graph`: recorded steps give the results of ordinary steps. On a CPU, everything but the graph runs."""

import json
import re

import pytest
import torch
from projects import experiment as write
from projects import metrics, same_weights, train, with_teacher
from test_methods import checked_params, every_method_and_rule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training import engine, experiment
from training.zoo import Zoo
from utils import checkpoint, cuda_graph, data, losses

# One run has Adam, random numbers and a clipped gradient in its steps, the other SGD with momentum and batch norm. The
# learning rate changes in the second epoch, and the third batch of an epoch is smaller.
NETWORKS = {
    "net": {"dropout_rate": 0.5, "precision": "bf16", "clip_grad_norm": 0.1},
    "preresnet8": {"model_name": "preresnet8", "num_channels": None},
}


class Tape(TorchDispatchMode):
    """A substitute for `cuda_graph.Graph` on the CPU: it records the operations of a step.

    The backward pass and the optimizer are included. Like a graph, it replays operations on the same memory and with
    the same numbers, refuses to read a value into Python, and does not change any state while it records.
    """

    replays = 0

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.own = [], {}, set()

    def warm_up(self, step):
        for _ in range(cuda_graph.WARMUP):
            step()

    def record(self, step):
        try:
            with torch.random.fork_rng([]), self:
                self.terms = step()
        finally:
            for tensor, value in self.before.values():
                tensor.detach().copy_(value)

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        for tensor in storages((arguments, options)):
            if address(tensor) not in self.own:
                self.before.setdefault(address(tensor), (tensor, tensor.detach().clone()))
        results = operation(*arguments, **(options or {}))
        self.own |= set(map(address, storages(results))) - self.before.keys()
        self.operations.append((operation, arguments, options or {}, results))
        return results

    @torch.no_grad()
    def replay(self):
        Tape.replays += 1
        for operation, arguments, options, results in self.operations:
            for place, value in zip(storages(results), storages(operation(*arguments, **options)), strict=True):
                if address(place) != address(value):
                    place.copy_(value)
        return self.terms


def storages(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def address(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    """The device of the scripts, and a recorder that works on this device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if request.param == "cpu":
        monkeypatch.setattr(engine, "pick_device", lambda gpu_id=None: torch.device("cpu"))
        monkeypatch.setattr(cuda_graph, "hindrance", lambda device: None)
        monkeypatch.setattr(cuda_graph, "Graph", Tape)
    return request.param


def make(folder, kind, network, trained, **changes):
    own = {"nasty": with_teacher(trained / "baseline/teacher", "adversarial")}
    own |= {"kd": with_teacher(trained / "baseline/teacher"), "scratch": {}}
    return write(folder, **own[kind], **NETWORKS[network], **changes)


def log(folder):
    return (folder / "training.log").read_text()


def assert_same(folder, other, device):
    """Equal to the last bit on the CPU. On a GPU within 1e-4, because libraries may choose another kernel."""
    tolerance = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-4, "atol": 1e-5}
    one, two = (torch.load(path / "last_model.tar", weights_only=True) for path in (folder, other))
    for part in ("state_dict", "optim_dict", "extra"):
        torch.testing.assert_close(one[part], two[part], **tolerance)
    for a, b in zip(metrics(folder), metrics(other), strict=True):
        torch.testing.assert_close(a["train"], b["train"], **tolerance)
    if device == "cpu":
        assert metrics(folder) == metrics(other)
        assert one["epoch"] == two["epoch"] and 0 <= one["best"][1] == two["best"][1] <= 100
        assert same_weights(folder / "best_model.tar", other / "best_model.tar")


@pytest.mark.parametrize(("kind", "network"), [("scratch", "net"), ("nasty", "preresnet8"), ("kd", "net")])
def test_recorded_steps_compute_what_plain_ones_do(kind, network, device, trained, tmp_path):
    plain, fast = (make(tmp_path / str(value), kind, network, trained, cuda_graph=value) for value in (False, True))
    before = Tape.replays
    train(plain)
    train(fast)
    assert_same(plain, fast, device)
    assert log(fast).count("Recorded a CUDA graph in ") == 2  # once for each learning rate
    assert "CUDA graph" not in log(plain)
    if device == "cpu":
        assert Tape.replays - before == 4  # all but the last batch of each epoch


@pytest.mark.parametrize(("kind", "network"), [("scratch", "preresnet8"), ("kd", "net")])
def test_cut_and_continued_it_ends_with_the_same_bits(kind, network, device, trained, tmp_path):
    keys = {"cuda_graph": True, "schedule": [2]}
    whole = make(tmp_path / "whole", kind, network, trained, num_epochs=3, **keys)
    cut = make(tmp_path / "cut", kind, network, trained, num_epochs=1, **keys)
    train(whole)
    train(cut)
    (cut / "params.json").write_text((whole / "params.json").read_text())
    train(cut)
    assert same_weights(whole / "last_model.tar", cut / "last_model.tar")
    assert metrics(whole) == metrics(cut)


def test_where_recording_fails_the_log_says_so_and_nothing_else_changes(device, trained, tmp_path, monkeypatch):
    plain, fast = (make(tmp_path / str(value), "nasty", "net", trained, cuda_graph=value) for value in (False, True))
    train(plain)
    honest = losses.F.cross_entropy

    def look(*arguments, **options):
        value = honest(*arguments, **options)
        assert value.item() is not None
        return value

    monkeypatch.setattr(losses.F, "cross_entropy", look)
    train(fast)
    (line,) = re.findall(r".*CUDA graph.*", log(fast))
    why = r"RuntimeError: operation not permitted$" if device == "cpu" else r"\S*Error: \S"
    assert re.search(rf"No CUDA graph, ordinary steps are run instead: {why}", line)
    assert_same(plain, fast, device)


def test_without_a_gpu_it_is_the_plain_path(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "pick_device", lambda gpu_id=None: torch.device("cpu"))
    plain, fast = (make(tmp_path / str(value), "kd", "net", trained, cuda_graph=value) for value in (False, True))
    train(plain)
    train(fast)
    assert log(fast).count("No CUDA graph, ordinary steps are run instead: a CUDA graph needs a GPU\n") == 1
    assert_same(plain, fast, "cpu")


def test_several_processes_take_the_plain_path(monkeypatch):
    assert cuda_graph.hindrance(torch.device("cuda")) is None
    monkeypatch.setattr("utils.distributed.WORLD_SIZE", 2)
    assert "several processes" in cuda_graph.hindrance(torch.device("cuda"))


@every_method_and_rule
def test_every_method(name, keys, device, frozen, tmp_path):
    """A run with recorded steps, and one with ordinary steps that is interrupted after its first epoch, end equal.

    One recording serves both epochs, so Python branches in `losses` must be the same in both.
    """
    keys = keys | {"precision": "fp32" if device == "cpu" else "bf16", "schedule": []}
    for folder, graph, lengths in (("recorded", True, [2]), ("cut", False, [1, 2])):
        (tmp_path / folder).mkdir()
        for length in lengths:
            params = checked_params(name, keys, frozen, cuda_graph=graph, num_epochs=length)
            experiment.train(tmp_path / folder, params, "")
    assert_same(tmp_path / "recorded", tmp_path / "cut", device)
    Zoo(data.DATASETS["digits"], torch.device("cpu")).frozen("net", tmp_path / "cut/best_model.tar")
    said = re.findall(r"INFO: (.*CUDA graph.*)", log(tmp_path / "recorded"))
    if name != "averager" or device == "cuda":  # on a CPU, its one_hot reads the labels into Python
        kinds = 2 if name == "dfad" else 1  # of batches
        images = 3 if name == "deepinversion" else 0  # batches of images, made in recorded steps
        assert len(said) == kinds + images
        assert all(re.match(r"(Images ./3: )?Recorded a CUDA graph in ", line) for line in said)


@pytest.mark.parametrize("name", ["dfad", "deepinversion", "skeptical", "scm"])
def test_recorded_steps_that_change_more_than_a_student_go_on_with_the_same_bits(name, device, frozen, tmp_path):
    for folder, lengths in (("whole", [2]), ("cut", [1, 2])):
        (tmp_path / folder).mkdir()
        for length in lengths:
            params = checked_params(name, {"cuda_graph": True}, frozen, num_epochs=length)
            experiment.train(tmp_path / folder, params, "")
    assert_same(tmp_path / "whole", tmp_path / "cut", "cpu")
    assert "Recorded a CUDA graph in " in log(tmp_path / "cut")


def test_a_run_that_began_before_there_was_the_key_goes_on(trained, tmp_path):
    folder = make(tmp_path / "x", "scratch", "net", trained, num_epochs=1)
    train(folder)
    state = torch.load(folder / "last_model.tar", weights_only=True)
    assert state["params"].pop("cuda_graph") is False
    checkpoint.save(folder / "last_model.tar", state)
    raw = json.loads((folder / "params.json").read_text()) | {"num_epochs": 2}
    (folder / "params.json").write_text(json.dumps(raw))
    assert "Continuing after epoch 1/2" in train(folder).out


@pytest.mark.parametrize("name", list(data.DATASETS))
@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_assembled_together_are_those_assembled_one_by_one(name, world_size):
    spec = data.DATASETS[name]
    images = torch.randint(256, (50, 16, 16, 3), dtype=torch.uint8)
    split = data.Split(images, torch.arange(50))
    for rank in range(world_size):
        runs = []
        for prefetch in (1, 3, 100):
            runs.append(list(data.Loader(split, spec, 8, spec.augmentation, True, 0, rank, world_size, prefetch)))
        for batches in runs[1:]:
            assert len(batches) == len(runs[0]) == 7
            for batch, expected in zip(batches, runs[0], strict=True):
                assert batch[0].is_contiguous(memory_format=torch.channels_last)
                assert all(map(torch.equal, batch, expected))
