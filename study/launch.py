"""A Plan of runs, and the Runner, which trains the runs of a plan in the order of their dependencies."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from study import progress
from study.executors import BUSY
from training import params, spec
from training.changes import differences, differences_to_run
from training.spec import Spec
from utils import checkpoint
from utils.errors import UserError
from utils.paths import from_root

WAITING, RUNNING, FINISHED = "waiting", "running", "finished"
POLL = 1  # seconds until the next attempt to start a run that another process trains


@dataclass(frozen=True)
class Planned:
    """A run of a Plan."""

    spec: Spec
    raw: dict  # the content of its params.json
    needs: frozenset  # folders of the runs whose checkpoints it loads


class Plan:
    """The runs that some specs need, each after the runs whose checkpoints it loads.

    runs: {folder: Planned}, in an order in which they can run. Folders are relative to the project root.
    """

    def __init__(self, specs=()):
        self.runs = {}
        for wanted in specs:
            self.add(wanted)

    def add(self, wanted, above=()):
        """Add the Spec `wanted` after all runs that it needs. Raises UserError if a run is invalid or needs itself.

        above: folders of the runs that need it.
        """
        folder = wanted.folder
        if folder in self.runs:
            return
        if folder in above:
            raise UserError("circular dependency: " + " -> ".join([*above, folder]))
        raw, sources = wanted.raw, wanted.sources
        for name, path in raw.items():
            is_checkpoint = name.endswith("resume") and isinstance(path, str)
            if is_checkpoint and name not in sources and not from_root(path).is_file():
                raise UserError(f'{folder}/params.json: "{name}": {Path(path).parent} has no params.json')
        for source in sources.values():
            self.add(source, (*above, folder))
        params.check(raw, from_root(folder) / "params.json")
        self.runs[folder] = Planned(wanted, raw, frozenset(source.folder for source in sources.values()))

    def conflict(self, folder):
        """An error message if `folder` holds another run than the planned one, or None."""
        file, last = from_root(folder) / "params.json", from_root(folder) / "last_model.tar"
        wanted = vars(params.check(self.runs[folder].raw, file))
        try:
            lines = differences(vars(params.load(file.parent)), wanted) if file.exists() else []
        except UserError as error:
            return str(error)
        stored = checkpoint.peek(last).get("params") if last.exists() and not lines else None
        if stored:
            lines = differences_to_run(stored, wanted)
        return f"holds a run with other parameters: {'; '.join(lines)}" if lines else None


class Runner:
    """Runs a Plan with an executor of study/executors.py.

    A run is skipped if a run that it depends on failed, or if its folder holds a run with other parameters. Finished
    runs are not repeated. If another process trains a run, the Runner tries again every POLL seconds to start it.

    until: {folder: epoch to stop after}; default: the last epoch. length, done: {folder: number of epochs to train, and
    of epochs that are finished}. states: {folder: WAITING, RUNNING, FINISHED, or an error message}.
    """

    def __init__(self, plan, until=None):
        self.plan, until = plan, until or {}
        self.length = {
            folder: min(until.get(folder, run.raw["num_epochs"]), run.raw["num_epochs"])
            for folder, run in plan.runs.items()
        }
        self.done = {folder: min(progress.epochs_done(folder), self.length[folder]) for folder in plan.runs}
        self.states = {folder: plan.conflict(folder) or self.first_state(folder) for folder in plan.runs}
        self.busy = {}  # {folder: time of the next attempt} of the waiting runs that other processes train
        self.metrics_before = {}  # {folder: time of the last write to metrics.jsonl before the run began}

    def first_state(self, folder):
        """FINISHED if the run in `folder` needs no more training, else WAITING."""
        raw, epochs = self.plan.runs[folder].raw, self.length[folder]
        finished = self.done[folder] == epochs and not progress.lacks_test_scores(folder, raw, epochs)
        return FINISHED if finished else WAITING

    def overview(self):
        """The plan as a table: each run with its progress and what it needs."""
        lines = [
            [folder, f"{self.done[folder]}/{epochs}", ", ".join(sorted(self.plan.runs[folder].needs))]
            for folder, epochs in self.length.items()
        ]
        waiting = [folder for folder, state in self.states.items() if state == WAITING]
        epochs = sum(self.length[folder] - self.done[folder] for folder in waiting)
        table = tabulate(lines, ["experiment", "epochs", "needs"], disable_numparse=True)
        conflicts = [f"{folder}: {state}\n" for folder, state in self.unfinished().items() if state != WAITING]
        return f"{table}\n\n{''.join(conflicts)}{len(lines)} runs, {len(waiting)} of them to do: {epochs} epochs"

    def unfinished(self):
        """{folder: state} of all runs that are not FINISHED."""
        return {folder: state for folder, state in self.states.items() if state != FINISHED}

    def run(self, executor):
        """Run the plan. Afterwards `unfinished` returns the failed and skipped runs. The caller closes the executor."""
        total, done = sum(self.length.values()), sum(self.done.values())
        with tqdm(total=total, initial=done, unit="epoch", disable=None, smoothing=0.05) as self.bar:
            while self.start_ready(executor) or RUNNING in self.states.values():
                for folder, error in executor.wait(seconds=1):
                    self.end(folder, error)
                self.show_progress()

    def start_ready(self, executor):
        """Start runs whose dependencies have finished, while slots are free. Return whether a run is still waiting."""
        waiting = [folder for folder, state in self.states.items() if state == WAITING]
        for folder in sorted(waiting, key=self.busy.__contains__):  # runs that other processes train come last
            needs = [self.states[source] for source in self.plan.runs[folder].needs]
            running = list(self.states.values()).count(RUNNING)
            if any(state not in (WAITING, RUNNING, FINISHED) for state in needs):
                self.set_state(folder, "skipped, because a run that it needs failed")
            elif self.busy.get(folder, 0) > time.monotonic():
                continue
            elif all(state == FINISHED for state in needs) and running < executor.slots:
                self.start(folder, executor)
        return WAITING in self.states.values()

    def start(self, folder, executor):
        """Write the definition of a run, and give it to the executor."""
        try:
            spec.write(self.plan.runs[folder].spec)
        except UserError as error:
            return self.set_state(folder, f"failed: {error}")
        self.metrics_before[folder] = progress.time_logged(folder)
        executor.start(folder, self.length[folder])
        if folder in self.busy:  # a repeated attempt is not printed
            self.states[folder] = RUNNING
        else:
            self.set_state(folder, RUNNING)

    def end(self, folder, error):
        """Set the state of the run in `folder`, which ended. error: from `executor.wait`: None, BUSY or a message."""
        if error != BUSY:
            return self.set_state(folder, f"failed: {error}" if error else FINISHED)
        if folder not in self.busy:
            self.bar.write(f"{folder}: {BUSY}; waiting for it", file=sys.stdout)
        self.states[folder], self.busy[folder] = WAITING, time.monotonic() + POLL

    def set_state(self, folder, state):
        self.states[folder] = state
        finished = list(self.states.values()).count(FINISHED)
        count = f" ({finished} of {len(self.states)})" if state == FINISHED else ""
        self.bar.write(f"{folder}: {state}{count}", file=sys.stdout)

    def show_progress(self):
        running = [f for f, state in self.states.items() if state == RUNNING or (state == WAITING and f in self.busy)]
        begun = [folder for folder in running if progress.time_logged(folder) != self.metrics_before[folder]]
        self.done |= {folder: progress.epochs_logged(folder) for folder in begun}
        self.done |= {folder: self.length[folder] for folder, state in self.states.items() if state == FINISHED}
        self.bar.set_postfix_str("; ".join(f"{Path(f).name} {self.done[f]}/{self.length[f]}" for f in running), False)
        self.bar.n = sum(self.done.values())
        self.bar.refresh()


def execute_with(executor):
    """Return a function that trains the runs in a list of (Spec, epoch to stop after or None) with `executor`.

    The function raises UserError if a run fails.
    """

    def execute(runs):
        runner = Runner(Plan(run for run, _ in runs), {run.folder: until for run, until in runs if until})
        runner.run(executor)
        if failed := runner.unfinished():
            raise UserError("\n".join(f"{folder}: {state}" for folder, state in failed.items()))

    return execute
