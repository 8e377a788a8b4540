"""The key `compile`: a training step recorded once, as a CUDA graph, and replayed.

A step of a small network is hundreds of kernels, and Python launches them slower than the GPU runs them. A graph is
launched at once: the forward passes of all networks, the frozen ones among them, losses, backward pass and optimizer.
Its kernels are those of the plain path and read the same numbers, so they compute the same. They work in the same
memory each time: a batch is copied there first. What Python decides, in `losses` for example, is decided while
recording, once and for all. Where a learning rate has changed, the step is recorded anew, which takes about as long as
a plain one. A batch of another size, the last of an epoch, takes the plain path; and so does every step where
recording is impossible or fails, which the log then says in a line. What would fail, an operation that waits for the
GPU, is looked for beforehand, since a failed recording is hard to clean up after.
"""

import functools
import time
import traceback
import warnings
from contextlib import contextmanager

import torch
from torch import nn

from utils import distributed

WARMUP = 3  # steps before the first recording, in which libraries and the optimizer set up what they keep
SPOILT = []  # graphs whose recording failed: PyTorch 2.11 goes on referring to them


class Recorder:
    """Takes training steps, out of recordings where it can: one for each number of tensors that a batch consists of.

    method, optimizer: they hold whatever a step changes. log: takes a line.
    """

    def __init__(self, method, optimizer, device, log):
        self.method, self.optimizer, self.device, self.log = method, optimizer, device, log
        self.inputs, self.warm, self.graphs = {}, set(), {}  # by the number of a batch's tensors
        self.rates, self.refused = None, False
        if reason := hindrance(device):
            self.refuse(reason)

    def refuse(self, reason):
        """From now on take the plain path, and say why."""
        self.log(f"Not compiled, the plain path is taken: {reason}")
        self.refused, self.inputs, self.graphs = True, {}, {}

    def __call__(self, step, *batch):
        """The terms of `step(*batch)`, which trains on a batch and returns {name: scalar without a gradient}.

        They lie where the next step's will be.
        """
        if self.refused:
            return step(*batch)
        kind = len(batch)
        if kind not in self.inputs:
            self.inputs[kind] = [tensor.clone() for tensor in batch]
        inputs = self.inputs[kind]
        if [tensor.shape for tensor in batch] != [tensor.shape for tensor in inputs]:
            return step(*batch)
        for place, tensor in zip(inputs, batch, strict=True):
            place.copy_(tensor)
        rates = [
            group["lr"] for optimizer in optimizers(self.method, self.optimizer) for group in optimizer.param_groups
        ]
        if rates != self.rates:
            self.rates, self.graphs = rates, {}  # before the next ones, which then find their memory free
        if kind not in self.graphs:
            self.record(kind, functools.partial(step, *inputs))
        return step(*batch) if self.refused else self.graphs[kind].replay()

    @property
    def active(self):
        """Whether steps are replayed."""
        return bool(self.graphs)

    def record(self, kind, step):
        start = time.perf_counter()
        try:
            graph = Graph()
            if kind not in self.warm:
                with unchanged(self.method, self.optimizer, self.device):
                    graph.warm_up(step)
                self.warm.add(kind)
            with capturable(optimizers(self.method, self.optimizer)):
                graph.record(step)
        except Exception as error:  # of any kind: what is wrong with the step itself shows on the plain path too
            self.refuse(traceback.format_exception_only(error)[0].splitlines()[0])
        else:
            self.graphs[kind] = graph
            self.log(f"Compiled in {time.perf_counter() - start:.1f} s")


class Graph:
    """A step on CUDA. It runs and is recorded on a stream of its own, as PyTorch asks for, and replayed on any."""

    def __init__(self):
        self.graph, self.stream = torch.cuda.CUDAGraph(), own_stream(torch.cuda.current_device())

    def warm_up(self, step):
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(WARMUP - 1):
                    step()
                with waiting_is_an_error():
                    step()
        finally:
            here.wait_stream(self.stream)

    def record(self, step):
        """Nothing is computed meanwhile. Where it fails, stream and random numbers are those of before."""
        here, generator = torch.cuda.current_stream(), torch.cuda.default_generators[torch.cuda.current_device()]
        random_state = generator.clone_state()
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.terms = step()
        except Exception as error:
            torch.cuda.set_stream(here)
            generator.graphsafe_set_state(random_state)
            SPOILT.append(self.graph)
            raise error.__context__ or error from None  # to end what is spoilt is an error of its own

    def replay(self):
        self.graph.replay()
        return self.terms


@functools.cache
def own_stream(device_number):
    """The one stream on which steps are recorded: libraries keep memory for each that they work on."""
    return torch.cuda.Stream(device_number)


@contextmanager
def waiting_is_an_error():
    """An operation that waits for the GPU raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that this is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def hindrance(device):
    """Why no step can be recorded on this device, or None."""
    if device.type != "cuda":
        return "a CUDA graph needs a GPU"
    return "several processes train together" if distributed.WORLD_SIZE > 1 else None


@contextmanager
def unchanged(method, optimizer, device):
    """After this context weights, batch norm, optimizer and random numbers are what they were before.

    A state that the optimizer has set up meanwhile stays, as zeros: what SGD's momentum and Adam begin with.
    """
    before = {tensor: tensor.detach().clone() for tensor in tensors(method, optimizer)}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for tensor in tensors(method, optimizer):
                tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()


def tensors(method, optimizer):
    """All tensors that a training step changes."""
    further = (value for value in method.extra().values() if isinstance(value, nn.Module))
    networks = nn.ModuleList([method.model, method.trained, *further])
    states = (state for own in optimizers(method, optimizer) for state in own.state.values())
    values = (value for state in states for value in state.values())
    return [*networks.parameters(), *networks.buffers(), *filter(torch.is_tensor, values)]


def optimizers(method, optimizer):
    """The student's or teacher's, and any that the method has besides."""
    return [optimizer, *(own for own in method.extra().values() if isinstance(own, torch.optim.Optimizer))]


@contextmanager
def capturable(optimizers):
    """Adam wants to be told when it is recorded; a checkpoint need not know."""
    groups = [group for own in optimizers for group in own.param_groups if "capturable" in group]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group in groups:
            group["capturable"] = False
