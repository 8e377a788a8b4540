"""Run the experiments of a plan in dependency order and show a progress bar."""

import sys
import time
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from study import plan as plans
from study.executors import BUSY
from training import spec
from utils.errors import UserError

WAITING, RUNNING, FINISHED = "waiting", "running", "finished"
POLL = 1  # seconds until the next attempt to start a run that another process trains


class Runner:
    """Runs a Plan with an executor of study/executors.py.

    states: {folder: WAITING, RUNNING, FINISHED, or an error}. A run is skipped if a run that it depends on
    failed, or if its folder holds a run with other parameters. Finished runs are not repeated. A run that another
    process trains is attempted again until that process has finished it, or has ended and left it.

    until: {folder: number of epochs to train}; default: all epochs.
    """

    def __init__(self, plan, until=None):
        self.plan, until = plan, until or {}
        self.length = {
            folder: min(until.get(folder, run.raw["num_epochs"]), run.raw["num_epochs"])
            for folder, run in plan.runs.items()
        }
        self.done = {folder: min(plans.epochs_done(folder), self.length[folder]) for folder in plan.runs}
        self.states = {folder: plan.conflict(folder) or self.first_state(folder) for folder in plan.runs}
        self.busy = {}  # {folder: time of the next attempt} of the waiting runs that other processes train
        self.metrics_before = {}  # {folder: time of the last write to metrics.jsonl before the run began}

    def first_state(self, folder):
        epochs = self.length[folder]
        finished = self.done[folder] == epochs and plans.is_scored(folder, self.plan.runs[folder].raw, epochs)
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
        """Run the plan. Afterwards `unfinished` returns the failed and skipped runs. The caller stops the executor."""
        total, done = sum(self.length.values()), sum(self.done.values())
        with tqdm(total=total, initial=done, unit="epoch", disable=None, smoothing=0.05) as self.bar:
            while self.start_ready(executor) or RUNNING in self.states.values():
                for folder, error in executor.wait(seconds=1):
                    self.end(folder, error)
                self.show_progress()

    def start_ready(self, executor):
        """Start runs whose dependencies have finished, up to `executor.room`. Return whether a run is still waiting."""
        waiting = [folder for folder, state in self.states.items() if state == WAITING]
        for folder in sorted(waiting, key=self.busy.__contains__):  # those of other processes last
            needs = [self.states[source] for source in self.plan.runs[folder].needs]
            running = list(self.states.values()).count(RUNNING)
            if any(state not in (WAITING, RUNNING, FINISHED) for state in needs):
                self.set_state(folder, "skipped, because a run that it needs failed")
            elif self.busy.get(folder, 0) > time.monotonic():
                continue
            elif all(state == FINISHED for state in needs) and running < executor.room:
                self.start(folder, executor)
        return WAITING in self.states.values()

    def start(self, folder, executor):
        try:
            spec.write(self.plan.runs[folder].spec)
        except UserError as error:
            return self.set_state(folder, f"failed: {error}")
        self.metrics_before[folder] = plans.time_logged(folder)
        executor.start(folder, self.length[folder])
        if folder in self.busy:
            self.states[folder] = RUNNING
        else:
            self.set_state(folder, RUNNING)

    def end(self, folder, error):
        """Note that the run in `folder` ended. error: None, BUSY or a message, as of `executor.wait`."""
        if error != BUSY:
            return self.set_state(folder, f"failed: {error}" if error else FINISHED)
        if folder not in self.busy:
            self.bar.write(f"{folder}: {BUSY}; waiting for it", file=sys.stdout)
        self.states[folder], self.busy[folder] = WAITING, time.monotonic() + POLL

    def set_state(self, folder, state):
        self.states[folder] = state
        self.bar.write(f"{folder}: {state}", file=sys.stdout)

    def show_progress(self):
        running = [f for f, state in self.states.items() if state == RUNNING or (state == WAITING and f in self.busy)]
        begun = [folder for folder in running if plans.time_logged(folder) != self.metrics_before[folder]]
        self.done |= {folder: plans.epochs_logged(folder) for folder in begun}
        self.done |= {folder: self.length[folder] for folder, state in self.states.items() if state == FINISHED}
        self.bar.set_postfix_str("; ".join(f"{Path(f).name} {self.done[f]}/{self.length[f]}" for f in running), False)
        self.bar.n = sum(self.done.values())
        self.bar.refresh()
