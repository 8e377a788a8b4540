"""Training and evaluation: seed, optimizer, precision, step, schedule, and the stop at NaN. Once for all methods."""

import os
import time
from functools import partial
from operator import length_hint

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from utils import distributed, heap
from utils.errors import Diverged, UserError
from utils.recorded import Recorder

LOOK_EVERY = 50  # steps between two looks at the running loss: each waits for the device
HINT = "A smaller learning_rate may help, or a smaller weight of the term that grew."


def seed_everything(seed, epoch):
    """Make PyTorch's global generators a function of (seed, epoch). epoch: −1 for the initial weights."""
    torch.manual_seed(derived_seed(seed, epoch + 1))


def derived_seed(*numbers):
    """A seed for PyTorch that is a function of whole numbers from 0 on."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def learning_rate(params, epoch):
    """The released rule: multiplied by `gamma` at the start of each epoch (from 0) of `schedule`."""
    rate = params.learning_rate
    for milestone in params.schedule:
        if milestone <= epoch:
            rate *= params.gamma
    return rate


def make_optimizer(params, network):
    """SGD or Adam as `params` say, one fused kernel for all weights."""
    weights, common = network.parameters(), {"lr": params.learning_rate, "weight_decay": params.weight_decay}
    if params.optimizer == "adam":
        return torch.optim.Adam(weights, **common, fused=True)
    return torch.optim.SGD(weights, **common, momentum=params.momentum, fused=True)


def pick_device(gpu_id=None):
    """GPU number `gpu_id` (default: 0, under torchrun its own) where there is one, the CPU otherwise."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_id is None:
        gpu_id = int(os.environ.get("LOCAL_RANK", 0))
    if count == 0:
        heap.keep()
        return torch.device("cpu")
    if gpu_id >= count:
        raise UserError(f"--gpu_id {gpu_id}: there are {count} GPUs, numbered from 0")
    torch.cuda.set_device(gpu_id)
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", gpu_id)


def has_bf16(device):
    """Whether the hardware multiplies bfloat16 matrices itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(precision, device):
    """ "fp32" or "bf16": `precision`, or what "auto" stands for on this device."""
    return ("bf16" if has_bf16(device) else "fp32") if precision == "auto" else precision


class Means:
    """Means of named scalars over images, added up on the device without waiting for it."""

    def __init__(self):
        self.names, self.sums, self.images = None, 0, 0  # sums: double (number of names,)

    def add(self, terms, images):
        """terms: {name: scalar without a gradient}, the same names each time."""
        assert self.names in (None, list(terms)), f"{list(terms)} after {self.names}"
        self.names = list(terms)
        self.sums = self.sums + torch.stack(list(terms.values())).double() * images  # four kernels for all
        self.images += images

    def values(self):
        """{name: mean}, as floats; waits for the device. Raises Diverged where one is not finite."""
        totals = self.sums.tolist()
        values = {name: total / self.images for name, total in zip(self.names, totals, strict=True)}
        if not np.isfinite(totals).all():
            raise Diverged(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return values

    def over_processes(self):
        """These means over the images of all processes."""
        totals = distributed.add_up(torch.cat((self.sums, self.sums.new_tensor([self.images]))))
        everywhere = Means()
        everywhere.names, everywhere.sums, everywhere.images = self.names, totals[:-1], int(totals[-1])
        return everywhere


def train_epoch(method, losses, loader, optimizer, title, recorder=None):
    """One pass over `method.batches(loader)`: the Means of the loss terms. Raises Diverged where one is not finite.

    losses: `method.losses`, or what stands for it when several processes train together. recorder: takes the steps
    where there is one.
    """

    def step(*batch):
        terms = losses(*batch)
        optimizer.zero_grad(set_to_none=True)
        (terms["loss"] * loader.weight if loader.weight != 1 else terms["loss"]).backward()
        optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    method.trained.train()
    means = Means()
    quiet = True if distributed.RANK else None  # None: quiet where there is no terminal
    batches = method.batches(loader)
    take = partial(recorder, step) if recorder else step
    with tqdm(total=length_hint(batches, len(loader)), desc=title, unit="step", leave=False, disable=quiet) as bar:
        for number, batch in enumerate(batches, 1):
            means.add(take(*batch), len(batch[0]))
            if number % LOOK_EVERY == 0:
                loss = means.values()["loss"]
                rate = means.images / max(bar.format_dict["elapsed"] or 0, 1e-9)
                bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} images/s", refresh=False)
            bar.update()
    means = means.over_processes()
    means.values()
    return means


@torch.no_grad()
def score(network, loader, further=None):
    """{"acc": accuracy in percent, "loss": mean cross-entropy} of `network` over all images of `loader`.

    further: a function of (images, labels, logits) that returns {name: mean over these images} to be averaged as well,
    or in place of "acc" or "loss".
    """
    network.eval()
    means = Means()
    for images, labels in loader:
        logits = network(images)
        terms = {"acc": accuracy(logits, labels), "loss": F.cross_entropy(logits, labels)}
        means.add(terms | (further(images, labels, logits) if further else {}), len(images))
    return means.values()


def accuracy(logits, labels):
    """Percent of the images whose highest logit is the label's."""
    return 100 * (logits.argmax(1) == labels).double().mean()


def train(method, loader, test_loader, params, run):
    """Train `method` until `params.num_epochs`, from wherever the run folder `run` stands."""
    optimizer = make_optimizer(params, method.trained)
    first = run.restore(method, optimizer)
    device = next(method.model.parameters()).device
    losses = distributed.parallel(method, device)
    recorder = Recorder(method, optimizer, device, run.log) if params.compile else None
    for epoch in range(first, params.num_epochs):
        start = time.perf_counter()
        seed_everything(params.seed, epoch)
        loader.set_epoch(epoch)
        rate = learning_rate(params, epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        title = f"Epoch {epoch + 1}/{params.num_epochs}"
        run.log(title)
        try:
            means = train_epoch(method, losses, loader, optimizer, title, recorder)
            seconds = time.perf_counter() - start
            test = method.evaluate(test_loader)
        except Diverged as error:
            raise Diverged(f"{title}: the loss is not finite any more: {error}. {HINT} {run.fallback()}") from None
        run.end_epoch(
            method,
            optimizer,
            {
                "epoch": epoch + 1,
                "lr": rate,
                "train": means.values(),
                "test": test,
                "seconds": round(seconds, 3),
                "images_per_second": round(means.images / seconds, 1),
            },
        )
