"""Runs the experiments of a plan, several at a time, each in a process of its own."""

import multiprocessing
import os
import sys
from multiprocessing.connection import wait

import torch
from tabulate import tabulate
from tqdm import tqdm

from utils import plan as plans
from utils.checkpoint import ROOT
from utils.errors import Diverged, UserError

WAITING, RUNNING, FINISHED = "waiting", "running", "finished"


class Runner:
    """Runs `plan` with up to `jobs` experiments at once, spread over the GPUs there are.

    states: {folder: WAITING, RUNNING, FINISHED or the reason why not}. What needs a failed experiment is left out,
    the rest goes on.
    """

    def __init__(self, plan, jobs, data_dir, download=False):
        self.plan, self.jobs, self.data_dir, self.download = plan, jobs, data_dir, download
        self.length = {folder: raw["num_epochs"] for folder, raw in plan.raws.items()}
        self.done = {folder: min(plans.epochs_done(folder), self.length[folder]) for folder in plan.raws}
        self.states = {f: FINISHED if self.done[f] == self.length[f] else WAITING for f in plan.raws}
        self.running = {}  # sentinel of a process: (folder, process, pipe to it, its GPU)

    def run(self):
        """Run everything; whether all of it finished."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["utils.experiment"])  # so PyTorch is imported once, not once a run
        total, done = sum(self.length.values()), sum(self.done.values())
        try:
            with tqdm(total=total, initial=done, unit="epoch", disable=None, smoothing=0.05) as self.bar:
                while self.start_ready(context) or self.running:
                    for sentinel in wait(list(self.running), timeout=1):
                        self.finish(*self.running.pop(sentinel))
                    self.show_progress()
        finally:
            for _, process, _, _ in self.running.values():
                process.terminate()
                process.join()
        return not self.failed()

    def overview(self):
        """The plan as a string: each experiment with what it needs and how far it is."""
        lines = [
            [folder, f"{self.done[folder]}/{epochs}", ", ".join(sorted(self.plan.dependencies(folder)))]
            for folder, epochs in self.length.items()
        ]
        left = sum(state != FINISHED for state in self.states.values())
        epochs = sum(self.length.values()) - sum(self.done.values())
        table = tabulate(lines, ["experiment", "epochs", "needs"], disable_numparse=True)
        return f"{table}\n\n{len(lines)} runs, {left} of them to do: {epochs} epochs"

    def failed(self):
        """{folder: why} of all that did not finish."""
        return {folder: state for folder, state in self.states.items() if state != FINISHED}

    def start_ready(self, context):
        """Start what waits for nothing any more, as far as there is room; whether anything is left waiting."""
        for folder in [folder for folder, state in self.states.items() if state == WAITING]:
            needs = [self.states[source] for source in self.plan.dependencies(folder)]
            if any(state not in (WAITING, RUNNING, FINISHED) for state in needs):
                self.set_state(folder, "left out, since what it needs failed")
            elif all(state == FINISHED for state in needs) and len(self.running) < self.jobs:
                self.start(folder, context)
        return WAITING in self.states.values()

    def start(self, folder, context):
        gpus, in_use = range(torch.cuda.device_count()), [gpu for _, _, _, gpu in self.running.values()]
        gpu = min(gpus, key=in_use.count, default=None)
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        receiver, sender = context.Pipe(duplex=False)
        self.plan.write(folder)
        process = context.Process(target=work, args=(folder, self.data_dir, gpu, self.download, threads, sender))
        process.start()
        sender.close()
        self.running[process.sentinel] = folder, process, receiver, gpu
        self.set_state(folder, RUNNING)

    def finish(self, folder, process, receiver, _):
        process.join()
        try:
            error = receiver.recv()
        except EOFError:
            error = f"its process died with exit code {process.exitcode}"
        self.set_state(folder, f"failed: {error}" if error else FINISHED)

    def set_state(self, folder, state):
        self.states[folder] = state
        self.bar.write(f"{folder}: {state}", file=sys.stdout)

    def show_progress(self):
        for folder, _, _, _ in self.running.values():
            self.done[folder] = lines_in(ROOT / folder / "metrics.jsonl")
        running = [f"{os.path.basename(f)} {self.done[f]}/{self.length[f]}" for f, *_ in self.running.values()]
        self.done |= {folder: self.length[folder] for folder, state in self.states.items() if state == FINISHED}
        self.bar.set_postfix_str("; ".join(running), refresh=False)
        self.bar.n = sum(self.done.values())
        self.bar.refresh()


def work(folder, data_dir, gpu, download, threads, sender):
    """Train one experiment; what a process of the runner does. Sends None, or why it failed."""
    from utils import experiment, params

    torch.set_num_threads(threads)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    error = None
    try:
        experiment.train(ROOT / folder, params.load(ROOT / folder), data_dir, gpu, download)
    except (UserError, Diverged) as problem:
        error = str(problem)
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem} (see {folder}/training.log)"
    except KeyboardInterrupt:
        error = "interrupted"
    sender.send(error)


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0
