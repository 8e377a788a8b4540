"""Executors train runs in processes of this machine, or as tasks of a Ray cluster.

An executor has `room`, the number of runs that it takes at once; `start(folder)`; `wait(seconds)`, which returns
[(folder, None or an error message)] of the runs that ended; and `stop()`, which interrupts all others.
"""

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import socket
import threading

import torch

from training import experiment, params
from utils.errors import Diverged, UserError
from utils.paths import ROOT, from_root

RETRIES = 3  # of a Ray task whose worker or node died; the run continues after its last epoch


def work(folder, data_dir, download, command, gpu=None, threads=None):
    """Train the run in `folder` silently. Returns None or an error message."""
    if threads:
        torch.set_num_threads(threads)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            path = from_root(folder)
            experiment.train(path, params.load(path), data_dir, gpu, download, command)
        except (UserError, Diverged) as problem:
            return str(problem)
        except Exception as problem:
            return f"{type(problem).__name__}: {problem} (see {folder}/training.log)"
        except KeyboardInterrupt:
            return "interrupted"


def end_with_parent():
    """End this process when its parent ends, even if the parent was killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class Local:
    """Up to `jobs` processes on this machine. Each uses the least used GPU, or its share of the CPU cores."""

    def __init__(self, jobs, data_dir, download=False, command=""):
        self.room, self.arguments = jobs, (data_dir, download, command)
        wanted = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(wanted) if wanted.isdecimal() else max(1, (os.cpu_count() or 1) // jobs)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["training.experiment"])  # imports PyTorch once, not once per run
        self.running = {}  # {sentinel of a process: (folder, process, pipe to it, its GPU)}

    def start(self, folder):
        in_use = [gpu for *_, gpu in self.running.values()]
        gpu = min(range(torch.cuda.device_count()), key=in_use.count, default=None)
        receiver, sender = self.context.Pipe(duplex=False)
        arguments = (sender, folder, *self.arguments, gpu, self.threads)
        process = self.context.Process(target=self.work_and_tell, args=arguments)
        process.start()
        sender.close()
        self.running[process.sentinel] = folder, process, receiver, gpu

    @staticmethod
    def work_and_tell(sender, *arguments):
        threading.Thread(target=end_with_parent, daemon=True).start()
        sender.send(work(*arguments))

    def wait(self, seconds):
        ended = []
        for sentinel in multiprocessing.connection.wait(list(self.running), seconds):
            folder, process, receiver, _ = self.running.pop(sentinel)
            process.join()
            try:
                ended.append((folder, receiver.recv()))
            except EOFError:
                ended.append((folder, f"its process died with exit code {process.exitcode}"))
        return ended

    def stop(self):
        for _, process, _, _ in self.running.values():
            process.terminate()
            process.join()


class Ray:
    """Tasks of a Ray cluster: `jobs` per GPU, or one per CPU core. Run folders lie on a shared file system."""

    room = math.inf  # Ray queues tasks

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
            raise UserError(f"--ray {address}: no Ray cluster answers there: {problem}") from None
        gpus = 1 / jobs if ray.cluster_resources().get("GPU") else 0
        self.task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(work)

    def start(self, folder):
        self.running[self.task.remote(folder, *self.arguments)] = folder

    def wait(self, seconds):
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [(self.running.pop(reference), self.outcome(reference)) for reference in done]

    def outcome(self, reference):
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as problem:
            return f"its Ray task failed {RETRIES + 1} times: {problem}"

    def stop(self):
        for reference in self.running:
            self.ray.cancel(reference)
        self.ray.shutdown()
