"""GPUs. Without one: steps on fake CUDA tensors, which have a device and no values. With one: the results of the CPU.

Steps on fake tensors find operations that work on two devices, that copy from one device to the other, or that read a
value into Python. The first are errors on a GPU. The others make the CPU wait for the GPU, which is not allowed while a
CUDA graph is recorded. The backward pass is left out, because it needs a real device.
"""

from pathlib import Path

import pytest
import torch
from projects import experiment, metrics, train, with_teacher
from test_methods import every_method_and_rule, raw_params
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import method
from method.attack.mkd import MKD
from method.datafree import Generating
from training import engine, params
from training.zoo import Zoo
from utils import cuda_graph, data
from utils.metrics import Means

CUDA = torch.device("cuda", 0)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default", "unique", "lift_fresh")


class Watch(TorchDispatchMode):
    """Collects the operations that leave the GPU or wait for it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        name = str(operation)
        devices = {leaf.device.type for leaf in tree_leaves((arguments, options, result)) if torch.is_tensor(leaf)}
        by_mask = "index" in name and any(torch.is_tensor(i) and i.dtype == torch.bool for i in tree_leaves(arguments))
        if "cpu" in devices or by_mask or any(word in name for word in WAITS):
            self.found.append((name, sorted(devices)))
        return result


class FakeZoo(Zoo):
    def frozen(self, name, path):
        return self.freeze(self.fresh(name))

    def load_weights(self, network, path, content=None):
        """Load nothing, because fake weights have no values."""


def apply_to_new_parameters(module, function, recurse=True):
    """A version of `nn.Module._apply` that replaces real parameters by fake ones."""
    for child in module.children():
        child._apply(function)
    for name, weight in module._parameters.items():
        if weight is not None:
            module._parameters[name] = nn.Parameter(function(weight.detach()), weight.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = buffer if buffer is None else function(buffer)
    return module


@pytest.fixture
def fake(monkeypatch):
    """Make all tensors of a test fake."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(nn.Module, "_apply", apply_to_new_parameters)
    monkeypatch.setattr(Generating, "train_generator", lambda self, terms: None)  # it makes a backward pass
    monkeypatch.setattr(MKD, "step_matrices", lambda self, loss: None)  # it makes a backward pass
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def batches_for(learner):
    """One batch of each kind that `losses` of the method accepts."""
    if isinstance(learner, Generating):
        return list(learner.iteration())
    images = torch.empty(32, 3, 32, 32, device=CUDA).contiguous(memory_format=torch.channels_last)
    return [(images, torch.zeros(32, dtype=torch.int64, device=CUDA))]


@every_method_and_rule
def test_losses_stay_on_the_gpu(name, keys, fake):
    """In bf16, which has the operations of fp32 and casts between them."""
    checked = params.check(raw_params(name, keys, "unread"), Path("params.json"))
    learner = method.find(name)(checked, FakeZoo(data.DATASETS["digits"], CUDA, bf16=True))
    learner.trained.train()
    for batch in batches_for(learner):
        with Watch() as watch:
            terms = learner.losses(*batch)
        assert {term.device for term in terms.values()} == {CUDA} and not watch.found
        with Watch() as watch:
            Means().add({term: value.detach() for term, value in terms.items()}, len(batch[0]))
        assert not watch.found


@pytest.mark.parametrize("name", list(data.DATASETS))
def test_batches_are_assembled_on_the_gpu(name, fake):
    spec = data.DATASETS[name]
    size = 50, spec.image_size, spec.image_size, 3
    split = data.Split(torch.empty(size, dtype=torch.uint8, device=CUDA), torch.zeros(50, dtype=int, device=CUDA))
    loader = data.Loader(split, spec, 8, spec.augmentation, shuffle=True)
    order, numbers = loader.sample_epoch()
    with Watch() as watch:
        images, labels = loader.assemble(order[:8], {kind: values[:8] for kind, values in numbers.items()})
    assert images.device == labels.device == CUDA and not watch.found
    assert images.shape == (8, 3, spec.image_size, spec.image_size) and labels.shape == (8,)


WRONG = {
    "item": lambda x: x.sum().item(),
    "mask": lambda x: x[x > 0],
    "two devices": lambda x: x + torch.empty(4),
    "copy": lambda x: torch.ones(4).to(CUDA),
    "constant": lambda x: torch.tensor([1.0, 2.0], device=CUDA),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name, fake):
    x = torch.empty(4, device=CUDA)
    with Watch() as watch:
        try:
            WRONG[name](x)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:  # it reads a value into Python
            watch.found.append(error)
        except RuntimeError as error:
            assert name == "two devices" and "device" in str(error)
            watch.found.append(error)
    assert watch.found


# On a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("name", list(data.DATASETS))
@pytest.mark.parametrize("prefetch", [False, True])
def test_batches_are_those_of_the_cpu_to_the_last_bit(name, prefetch):
    spec, found = data.DATASETS[name], []
    images = torch.randint(256, (300, spec.image_size, spec.image_size, 3), dtype=torch.uint8)
    for device in "cpu", "cuda":
        split = data.Split(images.to(device), torch.arange(300, device=device))
        loader = data.Dataset(name, spec, split, split, split, "").train_loader(32, prefetch=prefetch)
        assert loader.prefetch == (data.PREFETCH_IMAGES // 32 if prefetch and device == "cuda" else 1)
        found.append([[tensor.cpu() for tensor in batch] for batch in loader])
    for one, other in zip(*found, strict=True):
        assert all(map(torch.equal, one, other))


@needs_gpu
@pytest.mark.parametrize("graph", [False, True], ids=["ordinary", "cuda_graph"])
@pytest.mark.parametrize("kind", ["scratch", "nasty", "kd"])
def test_training_is_that_of_the_cpu(kind, graph, trained, tmp_path, monkeypatch):
    """Losses agree within 0.1 % and weights within 0.001. float32 and SGD keep rounding errors small."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    teacher = trained / "baseline/teacher"
    own = {"scratch": {}, "nasty": with_teacher(teacher, "adversarial"), "kd": with_teacher(teacher)}[kind]
    folders = {}
    for device in "cpu", "cuda":
        monkeypatch.setattr(engine, "pick_device", lambda gpu_id=None, device=device: torch.device(device))
        folders[device] = experiment(tmp_path / device, optimizer="sgd", cuda_graph=graph, **own)
        train(folders[device])
    one, two = (
        torch.load(folder / "last_model.tar", map_location="cpu", weights_only=True) for folder in folders.values()
    )
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=1e-3, atol=1e-3)
    for a, b in zip(*map(metrics, folders.values()), strict=True):
        torch.testing.assert_close(a["train"], b["train"], rtol=1e-3, atol=1e-4)


@needs_gpu
def test_after_a_failed_recording_all_is_as_before():
    torch.manual_seed(0)
    expected = torch.rand(8, device="cuda")
    torch.manual_seed(0)
    before = torch.cuda.get_rng_state()

    def step():
        return {"loss": torch.rand(8, device="cuda").sum().item()}

    with pytest.raises(Exception, match=r"."):
        cuda_graph.Graph().record(step)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(torch.rand(8, device="cuda"), expected)


@needs_gpu
def test_what_would_wait_is_an_error_in_the_last_step_before_a_recording():
    with pytest.raises(RuntimeError, match="synchroniz"):
        cuda_graph.Graph().warm_up(lambda: torch.ones(3, device="cuda").sum().item())
    assert torch.cuda.get_sync_debug_mode() == 0 and torch.cuda.current_stream() == torch.cuda.default_stream()
