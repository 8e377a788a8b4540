"""Processes that work on one plan at the same time: each run is trained once, whoever is killed."""

import functools
import importlib.util
import itertools
import random
import signal
from pathlib import Path

import pytest
from processes import KILLS, kill, kill_and_restart, start, unlocked, waited, working_in
from projects import SCRIPTS, copy_code, experiment, grow, metrics, same_weights, train

from study.executors import BUSY
from study.launch import FINISHED, Plan, Runner
from study.progress import epochs_logged
from training import params, spec
from training.folder import Run
from utils.errors import Busy

pytestmark = pytest.mark.slow
WAITS = f"{BUSY}; waiting for it"


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A copy of the project, whose scripts see as few images as this process."""
    root = copy_code(tmp_path_factory.mktemp("code"))
    (root / "experiments").mkdir()
    (root / "experiments/tables.json").write_text("{}")
    return root


@pytest.fixture(autouse=True)
def nothing_stays(code):
    """Ends what a failed test has left."""
    yield
    kill(working_in(code))


def reproduce(code, target, output, *argv):
    """Start `reproduce.py target`, which prints to the file `output`."""
    return start(code, "reproduce.py", target, *argv, output=output)


def starts(folder):
    return (folder / "training.log").read_text().count("Environment: ")


def table(output):
    """What `reproduce` printed after the runs."""
    return output.read_text().rpartition("\n\n")[2]


def same_runs(root, other):
    for name in SCRIPTS:
        assert metrics(root / name) == metrics(other / name)
        assert all(
            same_weights(root / name / file, other / name / file) for file in ("best_model.tar", "last_model.tar")
        )


def test_processes_share_a_plan(code, trained, tmp_path):
    root = grow(tmp_path / "x")
    outputs = [tmp_path / f"out{number}" for number in range(3)]
    running = [reproduce(code, root, output, "--jobs", "1") for output in outputs]
    for process in running:
        process.join(timeout=500)
    assert [process.exitcode for process in running] == [0, 0, 0], [o.read_text() for o in outputs]
    assert [starts(root / name) for name in SCRIPTS] == [1] * len(SCRIPTS)
    assert len({table(output) for output in outputs}) == 1 and WAITS in "".join(o.read_text() for o in outputs)
    same_runs(root, trained)


def test_a_killed_holder_frees_its_run(code, tmp_path):
    """Only reproduce.py is killed. Its worker notices, and another reproduce.py continues the run."""
    whole, shared = (experiment(tmp_path / name, num_epochs=20) for name in ("whole", "shared"))
    train(whole)
    first = reproduce(code, shared, tmp_path / "first", "--jobs", "1")
    assert waited(lambda: epochs_logged(shared) > 1)
    holders = working_in(code)
    kill(holders, signal.SIGSTOP)  # so that it is not finished before the second one begins
    second = reproduce(code, shared, tmp_path / "second", "--jobs", "1")
    assert waited(lambda: WAITS in (tmp_path / "second").read_text())
    first.kill()
    first.join()
    kill(holders, signal.SIGCONT)
    second.join(timeout=500)
    assert second.exitcode == 0, (tmp_path / "second").read_text()
    assert not set(working_in(code)) & set(holders)
    assert "Continuing after epoch" in (shared / "training.log").read_text()
    assert metrics(shared) == metrics(whole) and same_weights(shared / "last_model.tar", whole / "last_model.tar")


CASES = {
    "reproduce.py and its workers": (["--jobs", "2"], True),
    "reproduce.py": (["--jobs", "2"], False),
    "reproduce.py and Ray": (["--ray"], True),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_and_started_again(case, code, trained, tmp_path):
    flags, whole_group = CASES[case]
    if "Ray" in case and not (KILLS > 2 and importlib.util.find_spec("ray")):
        pytest.skip("needs Ray and minutes: pip install ray, and set KILLS=100")
    rng, kills = random.Random(case), 0
    for number in itertools.count():
        root = grow(tmp_path / str(number))
        begin = functools.partial(reproduce, code, root, tmp_path / f"{number}.out", *flags)
        kills += kill_and_restart(begin, code, rng, KILLS - kills, whole_group)
        assert all(unlocked(root / name) for name in SCRIPTS)
        same_runs(root, trained)
        if kills == KILLS:
            break


def test_a_run_that_was_trained_since_it_was_read_is_left_alone(tmp_path):
    folder = experiment(tmp_path / "x")
    early = Run(folder, params.load(folder))
    train(folder)
    before = (folder / "last_model.tar").read_bytes()
    with pytest.raises(Busy):
        early.lock()
    assert unlocked(folder) and (folder / "last_model.tar").read_bytes() == before


class Elsewhere:
    """An executor for which another process trains the run `held` until the third attempt."""

    slots = 1

    def __init__(self, held):
        self.held, self.started, self.ended = held, [], []

    def start(self, folder, until):
        busy = folder == self.held and self.started.count(folder) < 2
        self.started.append(folder)
        self.ended.append((folder, BUSY if busy else None))

    def wait(self, seconds):
        ended, self.ended = self.ended, []
        return ended


def test_what_another_process_trains_is_attempted_again_after_everything_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("study.launch.POLL", 0)
    names = "a", "b", "c"
    folders = [str(experiment(tmp_path / name)) for name in names]
    runner, executor = Runner(Plan(map(spec.make, folders))), Elsewhere(folders[0])
    runner.run(executor)
    assert [Path(folder).name for folder in executor.started] == ["a", "b", "c", "a", "a"]
    assert set(runner.states.values()) == {FINISHED} and capsys.readouterr().out.count(WAITS) == 1
