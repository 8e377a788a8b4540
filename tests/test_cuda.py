"""Tests that need a GPU: equal results on GPU and CPU, and recovery from a failed recording."""

import pytest
import torch
from conftest import experiment, metrics, train, with_teacher

from training import engine
from utils import cuda_graph, data

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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


def test_what_would_wait_is_an_error_in_the_last_step_before_a_recording():
    with pytest.raises(RuntimeError, match="synchroniz"):
        cuda_graph.Graph().warm_up(lambda: torch.ones(3, device="cuda").sum().item())
    assert torch.cuda.get_sync_debug_mode() == 0 and torch.cuda.current_stream() == torch.cuda.default_stream()
