"""Settings of pytest and fixtures.

pytest-xdist reads this file in a process that runs no tests. PyTorch takes seconds, so only fixtures import it.
"""

import gc
import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # read when PyTorch is imported, here and in the scripts that tests start

import pytest
from processes import share_server


def pytest_configure(config):
    gc.disable()  # until all tests are collected
    if hasattr(config, "workerinput") or config.getoption("numprocesses", 0):  # with pytest-xdist
        share_server()


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Garbage collections leave out all objects of PyTorch, pytest and the tests, which exist until the end."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # otherwise libraries report what was never collected


@pytest.fixture(autouse=True)
def one_thread():
    """Threads do not make small networks faster. On busy cores they make them ten times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Restore the signal handlers that a script replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def frozen(tmp_path_factory):
    """The checkpoint of a network that serves as teacher and as adversarial network."""
    import torch

    from training.zoo import Zoo
    from utils import checkpoint, data

    path = tmp_path_factory.mktemp("frozen") / "best_model.tar"
    torch.manual_seed(1)
    network = Zoo(data.DATASETS["digits"], torch.device("cpu")).fresh("net", num_channels=2)
    checkpoint.save(path, {"state_dict": network.state_dict(), "params": {"num_channels": 2}})
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The five experiments of `grow` after training. Tests must not change them."""
    from projects import SCRIPTS, grow, train

    root = grow(tmp_path_factory.mktemp("trained"))
    for name in SCRIPTS:
        train(root / name)
    return root
