"""The key `cuda_graph`: record a training step as a CUDA graph once, and replay it.

A step of a small network consists of hundreds of kernels, which Python launches more slowly than a GPU runs them. A
graph launches all of them at once: forward passes, losses, backward pass and optimizer. A graph contains the kernels of
an ordinary step, so the results are the same. CUDA graphs have three restrictions:

- A graph always uses the same memory, so each batch is first copied to this memory.
- Python code, such as branches in `losses`, runs during recording only. A step is recorded anew when a learning rate
  changes. Recording takes about as long as an ordinary step.
- Batches of another size, such as the last of an epoch, run as ordinary steps. If recording is impossible or fails,
  all steps run as ordinary steps, and the log states the reason.

Operations that wait for the GPU make a recording fail. They are detected before recording, because a failed recording
is hard to clean up.
"""

import functools
import time
import traceback
import warnings
from contextlib import contextmanager

import torch
from torch import nn

from utils import distributed

WARMUP = 3  # steps before the first recording, in which libraries and the optimizer allocate their state
FAILED = []  # graphs whose recording failed. They must not be freed, because PyTorch 2.11 still refers to them.


class Recorder:
    """Runs training steps, as a CUDA graph if possible. There is one graph for each number of tensors in a batch.

    method, optimizer: a step changes only the state of these. log: a function that logs a line.
    """

    def __init__(self, method, optimizer, device, log):
        self.method, self.optimizer, self.device, self.log = method, optimizer, device, log
        self.inputs, self.warm, self.graphs = {}, set(), {}  # keys: the number of tensors in a batch
        self.rates, self.refused = None, False
        if reason := hindrance(device):
            self.refuse(reason)

    def refuse(self, reason):
        """Log the reason, and run ordinary steps from now on."""
        self.log(f"No CUDA graph, ordinary steps are run instead: {reason}")
        self.refused, self.inputs, self.graphs = True, {}, {}

    def __call__(self, step, *batch):
        """Run the training step `step(*batch)`, and return its {name: scalar without a gradient}.

        The next call overwrites these scalars.
        """
        if self.refused:
            return step(*batch)
        count = len(batch)
        if count not in self.inputs:
            self.inputs[count] = [tensor.clone() for tensor in batch]
        inputs = self.inputs[count]
        if [tensor.shape for tensor in batch] != [tensor.shape for tensor in inputs]:
            return step(*batch)
        for target, tensor in zip(inputs, batch, strict=True):
            target.copy_(tensor)
        rates = [
            group["lr"] for optimizer in optimizers(self.method, self.optimizer) for group in optimizer.param_groups
        ]
        if rates != self.rates:
            self.rates, self.graphs = rates, {}  # frees the memory of the old graphs before new ones are recorded
        if count not in self.graphs:
            self.record(count, functools.partial(step, *inputs))
        return step(*batch) if self.refused else self.graphs[count].replay()

    @property
    def active(self):
        """Whether steps are replayed."""
        return bool(self.graphs)

    def record(self, count, step):
        """Record `step` as the graph for batches of `count` tensors. If that fails, log why and run ordinary steps."""
        start = time.perf_counter()
        try:
            graph = Graph()
            if count not in self.warm:
                with unchanged(self.method, self.optimizer, self.device):
                    graph.warm_up(step)
                self.warm.add(count)
            with capturable(optimizers(self.method, self.optimizer)):
                graph.record(step)
        except Exception as error:  # an error of the step itself is raised again by the ordinary step
            self.refuse(traceback.format_exception_only(error)[0].splitlines()[0])
        else:
            self.graphs[count] = graph
            self.log(f"Recorded a CUDA graph in {time.perf_counter() - start:.1f} s")


class Graph:
    """The CUDA graph of a step. It is recorded on a side stream, as PyTorch requires, and replayed on any stream."""

    def __init__(self):
        self.graph, self.stream = torch.cuda.CUDAGraph(), side_stream(torch.cuda.current_device())

    def warm_up(self, step):
        """Run `step` WARMUP times on the side stream. Raises RuntimeError if the step waits for the GPU."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(WARMUP - 1):
                    step()
                with waiting_is_an_error():
                    step()
        finally:
            current.wait_stream(self.stream)

    def record(self, step):
        """Record `step` without computing it. If that fails, restore the stream and the random state."""
        current, generator = torch.cuda.current_stream(), torch.cuda.default_generators[torch.cuda.current_device()]
        random_state = generator.clone_state()
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.terms = step()
        except Exception as error:
            torch.cuda.set_stream(current)
            generator.graphsafe_set_state(random_state)
            FAILED.append(self.graph)
            raise error.__context__ or error from None  # ending a failed recording raises a second error

    def replay(self):
        """Run the recorded step. Returns its terms, which the next replay overwrites."""
        self.graph.replay()
        return self.terms


@functools.cache
def side_stream(device_number):
    """The stream on which all steps are recorded. There is only one, because libraries keep memory for each stream."""
    return torch.cuda.Stream(device_number)


@contextmanager
def waiting_is_an_error():
    """In this context, operations that wait for the GPU raise RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # PyTorch warns that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def hindrance(device):
    """The reason why steps cannot be recorded on this device, or None."""
    if device.type != "cuda":
        return "a CUDA graph needs a GPU"
    return "several processes train together" if distributed.WORLD_SIZE > 1 else None


@contextmanager
def unchanged(method, optimizer, device):
    """Restore weights, batch norm, optimizer and random state at the end of this context.

    State that the optimizer created in the context is set to zero, the initial state of SGD and Adam.
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
    states = (state for each in optimizers(method, optimizer) for state in each.state.values())
    values = (value for state in states for value in state.values())
    return [*networks.parameters(), *networks.buffers(), *filter(torch.is_tensor, values)]


def optimizers(method, optimizer):
    """The optimizer of the engine and those of the method."""
    return [optimizer, *(item for item in method.extra().values() if isinstance(item, torch.optim.Optimizer))]


@contextmanager
def capturable(optimizers):
    """Set Adam's option `capturable`, which recording requires, inside this context only."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if "capturable" in group]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group in groups:
            group["capturable"] = False
