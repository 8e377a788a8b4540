"""Executors train runs in processes of this machine, or as tasks of a Ray cluster.

An executor has
- `slots`, the largest number of runs that it trains at the same time;
- `start(folder, until)`, which starts training the run in `folder`, up to epoch `until` (None: the last one);
- `wait(seconds)`, which waits until a run ends, but at most `seconds`. It returns a list of (folder, error) of the runs
  that ended. The error is the result of `work`, or a message if the process or the task failed;
- `close()`, which interrupts all runs.
"""

import contextlib
import functools
import math
import multiprocessing
import multiprocessing.connection
import os
import socket
import threading
import time

import torch

from training import experiment, params
from utils import data
from utils.errors import Busy, Diverged, UserError
from utils.paths import ROOT, from_root

BUSY = "another process is training here"
INTERRUPTED = "interrupted"
RETRIES = 3  # how often Ray repeats a task whose worker or node stopped; the run then continues


load_data = functools.lru_cache(maxsize=2)(data.load)  # a worker reads a data set once


def work(folder, until, data_dir, download, command, gpu=None, threads=None):
    """Train the run in `folder` until epoch `until` (None: the last one), without output.

    command: the command line that started the run, for the checkpoint. Returns None, BUSY, INTERRUPTED or an error
    message.
    """
    if threads:
        torch.set_num_threads(threads)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            path = from_root(folder)
            experiment.train(path, params.load(path), data_dir, gpu, download, command, until, load_data)
        except Busy:
            return BUSY
        except (UserError, Diverged) as problem:
            return str(problem)
        except Exception as problem:
            return f"{type(problem).__name__}: {problem} (see {folder}/training.log)"
        except KeyboardInterrupt:
            return INTERRUPTED


def end_with_parent():
    """End this process when its parent ends, even if the parent was killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class Processes:
    """Up to `jobs` worker processes on this machine. Each uses the least used GPU, or its share of the CPU cores."""

    def __init__(self, jobs, data_dir, download=False, command=""):
        self.slots, self.arguments = jobs, (data_dir, download, command)
        wanted = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(wanted) if wanted.isdecimal() else max(1, (os.cpu_count() or 1) // jobs)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["training.experiment"])  # imports PyTorch once, not once per worker
        self.idle, self.busy = [], {}  # [worker] and {pipe: (worker, folder)}; a worker is (process, pipe, gpu)

    def start(self, folder, until=None):
        self.idle = [worker for worker in self.idle if worker[0].is_alive()]  # the system may have killed one
        worker = self.idle.pop() if self.idle else self.new_worker()
        worker[1].send((folder, until))
        self.busy[worker[1]] = worker, folder

    def new_worker(self):
        """Start a process that runs `serve`. Returns (process, pipe to it, number of its GPU or None)."""
        in_use = [gpu for (_, _, gpu), _ in self.busy.values()]
        gpu = min(range(torch.cuda.device_count()), key=in_use.count, default=None)
        own_end, worker_end = self.context.Pipe()
        process = self.context.Process(target=serve, args=(worker_end, *self.arguments, gpu, self.threads))
        process.start()
        worker_end.close()
        return process, own_end, gpu

    def wait(self, seconds):
        ended = []
        for pipe in multiprocessing.connection.wait(list(self.busy), seconds):
            worker, folder = self.busy.pop(pipe)
            try:
                ended.append((folder, pipe.recv()))
                self.idle.append(worker)
            except (EOFError, OSError):
                worker[0].join()
                ended.append((folder, f"its process ended with exit code {worker[0].exitcode}"))
        return ended

    def close(self):
        for _, pipe, _ in self.idle:
            pipe.close()  # `serve` then ends
        for (process, _, _), _ in self.busy.values():
            process.terminate()
        for process, _, _ in (*self.idle, *(worker for worker, _ in self.busy.values())):
            process.join()
        self.idle, self.busy = [], {}


class InProcess:
    """Trains one run after the other in this process."""

    slots = 1

    def __init__(self, data_dir, download=False, command=""):
        self.arguments, self.ended = (data_dir, download, command), []

    def start(self, folder, until=None):
        error = work(folder, until, *self.arguments)
        if error == INTERRUPTED:
            raise KeyboardInterrupt
        self.ended.append((folder, error))

    def wait(self, seconds):
        if not self.ended:  # another process trains the run that the Runner waits for
            time.sleep(seconds)
        ended, self.ended = self.ended, []
        return ended

    def close(self):
        pass


def serve(pipe, *arguments):
    """Receive (folder, until) from `pipe`, train this run and send the result of `work`, until `pipe` is closed."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(work(*pipe.recv(), *arguments))


class Ray:
    """Trains runs as tasks of a Ray cluster: `jobs` per GPU, or one per CPU core. All nodes must see the run folders.

    address: the address of the cluster; None: a local cluster. Raises UserError without Ray, or without a cluster.
    """

    slots = math.inf  # Ray queues tasks

    def __init__(self, address, jobs, data_dir, download=False, command=""):
        try:
            import ray
        except ImportError:
            raise UserError("--ray needs Ray: pip install ray") from None
        self.ray, self.arguments, self.running = ray, (data_dir, download, command), {}
        try:
            if address and ":" in address:  # Ray itself retries for minutes
                host, port = address.removeprefix("ray://").rsplit(":", 1)
                socket.create_connection((host, int(port)), timeout=10).close()
            environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
            ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError) as problem:
            raise UserError(f"--ray {address}: no Ray cluster at this address: {problem}") from None
        gpus = 1 / jobs if ray.cluster_resources().get("GPU") else 0
        self.task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(work)

    def start(self, folder, until=None):
        self.running[self.task.remote(folder, until, *self.arguments)] = folder

    def wait(self, seconds):
        if not self.running:  # `ray.wait` raises an error for an empty list
            time.sleep(seconds)
            return []
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [(self.running.pop(reference), self.outcome(reference)) for reference in done]

    def outcome(self, reference):
        """What `work` returned in a finished Ray task, or the error of the task."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as problem:
            return f"its Ray task failed {RETRIES + 1} times: {problem}"

    def close(self):
        for reference in self.running:
            self.ray.cancel(reference)
        self.ray.shutdown()
