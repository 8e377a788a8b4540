"""Make images from the batch-norm statistics of a network: the first half of DeepInversion, Yin et al., CVPR 2020.

min_x  CE(σ(t(x)), y) + a_tv TV(x) + a_l2 ‖x‖₂ + a_f Σ_l ( ‖μ_l(x) − m_l‖₂ + ‖σ²_l(x) − v_l‖₂ )
       + a_c ( 1 − JS( σ_T(s(x)), σ_T(t(x)) ) )

x     a batch of normalised images, randomly shifted in each step, and randomly flipped if `flip` is true
y     the classes of the images        m_l, v_l   running mean and variance of batch norm l
t     the network that is inverted     μ_l, σ²_l  mean and variance of the input of batch norm l for x
s     a student of t, or none          TV         total variation: norms of the differences between neighbouring pixels
T     temperature                      JS         Jensen-Shannon divergence
a_…   weights                          σ, σ_T     softmax, softmax(·/T)

As in the released script for CIFAR, images are shifted and not flipped by default. JS differs from the released code;
see docs/deviations.md.
"""

import math
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from model.network import at_least_float32
from utils import cuda_graph
from utils.errors import Diverged, UserError
from utils.losses import cross_entropy, kl


def invert(
    network, labels, image_size, *, steps=2000, learning_rate=0.05, a_tv=2.5e-5, a_l2=0.0, a_f=10.0, a_c=0.0,
    student=None, T=3.0, jitter=2, flip=False, seed=0, title=None, log=None,
):  # fmt: skip
    """Make images of the classes `labels` (N,).

    Returns (normalised images, float32 (N, 3, H, W); {term: scalar} of the last step).

    network, student: networks in eval mode. jitter: largest shift in pixels. flip: whether images are mirrored at
    random. seed: seed of the initial images, the shifts and the flips. title: text of the progress bar. log: a function
    that logs a line. If it is given, the step is recorded as a CUDA graph where this is possible. Raises UserError if
    the network has no batch norm, and Diverged if the images become NaN or infinite.
    """
    if not batch_norms(network):
        raise UserError(no_batch_norm(type(network).__name__))
    generator = torch.Generator().manual_seed(seed)
    x = nn.Parameter(torch.randn(len(labels), 3, image_size, image_size, generator=generator).to(labels.device))
    shifts = torch.randint(-jitter, jitter + 1, (steps, 2), generator=generator)
    flips = torch.rand(steps, generator=generator) < 0.5 * flip
    optimizer = torch.optim.Adam([x], learning_rate, fused=True)

    def step(rows, columns):
        shifted = x.index_select(2, rows).index_select(3, columns).contiguous(memory_format=torch.channels_last)
        with batch_norm_distances(network) as distances:
            logits = network(shifted)
        student_logits = student(shifted) if a_c > 0 else None
        terms = inversion_loss(shifted, labels, logits, sum(distances), student_logits, a_tv, a_l2, a_f, a_c, T)
        optimizer.zero_grad(set_to_none=True)
        terms["inversion"].backward(inputs=[x])
        optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    if log and not cuda_graph.hindrance(labels.device):
        images = nn.ParameterList([x])
        method = SimpleNamespace(model=images, trained=images, extra=lambda: {})  # what Recorder needs of a method
        step = partial(cuda_graph.Recorder(method, optimizer, labels.device, log), step)
    indices = zip(*(index.to(labels.device) for index in shift_and_flip(image_size, shifts, flips)), strict=True)
    disable = None if title else True  # None: tqdm shows a bar only in a terminal
    for rows, columns in tqdm(indices, title, steps, leave=False, disable=disable):
        terms = step(rows, columns)
    if not x.isfinite().all():
        raise Diverged(", ".join(f"{name} {value:.4g}" for name, value in terms.items()))
    return x.detach(), terms


def shift_and_flip(size, shifts, flips):
    """(rows, columns), both int (steps, size): the input row of each output row, and the same for columns.

    shifts: int (steps, 2), cyclic shifts down and to the right. flips: bool (steps,), whether the shifted image is
    mirrored left to right.
    """
    positions = torch.arange(size)
    rows, columns = ((positions - shift[:, None]) % size for shift in shifts.T)
    return rows, torch.where(flips[:, None], columns.flip(1), columns)


def inversion_loss(x, labels, logits, bn, student_logits, a_tv, a_l2, a_f, a_c, T):
    """The loss of the equation and its terms without weights: {"inversion": loss, "ce": …, "tv": …, …}.

    bn: the sum over l in the equation. student_logits: s(x), or None.
    """
    terms = {"ce": cross_entropy(logits, labels), "tv": total_variation(x), "l2": x.norm(), "bn": bn}
    loss = terms["ce"] + a_tv * terms["tv"] + a_l2 * terms["l2"] + a_f * terms["bn"]
    if student_logits is not None:
        terms["js"] = jensen_shannon(student_logits, logits, T)
        loss = loss + a_c * (1 - terms["js"])
    return {"inversion": loss} | terms


def total_variation(x):
    """TV of a batch (N, 3, H, W): the sum of four L2 norms of the differences between neighbouring pixels.

    The neighbours are those to the right, below, and on both diagonals.
    """
    across, down = x[..., :-1] - x[..., 1:], x[..., :-1, :] - x[..., 1:, :]
    rising, falling = x[..., 1:, :-1] - x[..., :-1, 1:], x[..., :-1, :-1] - x[..., 1:, 1:]
    return across.norm() + down.norm() + rising.norm() + falling.norm()


def distance(x, mean, variance):
    """‖μ(x) − mean‖₂ + ‖σ²(x) − variance‖₂ for the input x (N, C, …) of a batch norm."""
    x = at_least_float32(x).movedim(1, -1).flatten(0, -2)  # (N …, C), no copy for channels_last tensors
    batch_mean = x.mean(0)
    return (batch_mean - mean).norm() + ((x - batch_mean).square().mean(0) - variance).norm()


def jensen_shannon(p, q, T):
    """½ KL( p' ‖ m ) + ½ KL( q' ‖ m ), where p' and q' are softmax(p/T) and softmax(q/T), and m is their mean.

    p, q: logits (N, C).
    """
    p, q = F.log_softmax(p / T, 1), F.log_softmax(q / T, 1)
    m = torch.logaddexp(p, q) - math.log(2)
    return (kl(p, m) + kl(q, m)) / 2  # kl takes logits; log-probabilities are logits of the same distribution


@contextmanager
def batch_norm_distances(network):
    """Yield a list, to which forward passes of `network` in this context append the `distance` of each batch norm."""
    distances = []

    def append_distance(layer, inputs):
        distances.append(distance(inputs[0], layer.running_mean, layer.running_var))

    hooks = [layer.register_forward_pre_hook(append_distance) for layer in batch_norms(network)]
    try:
        yield distances
    finally:
        for hook in hooks:
            hook.remove()


def batch_norms(network):
    """All batch norm layers of `network`, in order."""
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


def no_batch_norm(name):
    """The error message for a network without batch norm."""
    return f"{name} has no batch norm, but this attack needs the statistics of batch norm"
