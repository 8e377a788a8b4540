"""Shared parts of the attacks without data: synthetic batches, and a generator that makes them.

These are white-box attacks: they use the teacher's features and gradients. They call the teacher through its release
rule, unless their file states otherwise.
"""

from dataclasses import dataclass
from functools import partial

import torch

from method.attacker import Attack
from model.generator import Generator
from utils import distributed
from utils.epochs import get_lr
from utils.errors import UserError
from utils.keys import key
from utils.paths import write_file

# Keys of params.json that do not change the images that an attack makes
IRRELEVANT = {"num_epochs", "num_workers", "cuda", "cuda_graph", "grid_every", "stored_answers_gib", "test_at_end"}


class Batches:
    """An iterable with a length."""

    def __init__(self, batches, length):
        self.batches, self.length = batches, length

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return self.length


class DataFree(Attack):
    """An attack that does not use the images of the loader. It uses `loader.epoch` only."""

    folder = None  # the run folder; None: no files are written

    @dataclass
    class Params(Attack.Params):
        grid_every: int = key("epochs between two files images/epochN.png; 0: no files", default=50, low=0)

        @staticmethod
        def problems(params, networks):
            problems = []
            if params.batch_size < 2:
                problems.append(f'"batch_size": must be at least 2 because of batch norm, not {params.batch_size}')
            if params.answers == "label":
                problems.append(f'"answers": {params.method} needs logits')
            return problems

    def __init__(self, params, zoo):
        if distributed.WORLD_SIZE > 1:
            raise UserError(f'"{params.method}" cannot train with several processes; start it without torchrun')
        super().__init__(params, zoo)

    def begin(self, run):
        self.folder, self.log = run.folder, run.log

    def save_grid(self, epoch, images):
        """Every `grid_every` epochs and after the last epoch, write the first 64 images to a PNG file.

        images: float (N, 3, H, W). 0 is black and 1 is white.
        """
        from torchvision.utils import save_image  # imported here because importing torchvision takes seconds

        every, finished = self.params.grid_every, epoch + 1
        if self.folder and every and (finished % every == 0 or finished == self.params.num_epochs):
            write_file(self.image_file(f"epoch{finished:04}.png"), partial(save_image, images[:64], format="png"))

    def image_file(self, name):
        """The path of a file in the folder `images` of the run folder."""
        (self.folder / "images").mkdir(exist_ok=True)
        return self.folder / "images" / name


def pixels(images, spec):
    """Undo the normalisation of images (N, 3, H, W), so that 0 is black and 1 is white. Values are not clipped."""
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (spec.mean, spec.std))
    return images * std + mean


class Generating(DataFree):
    """An attack that trains a generator, `self.generator`, alternately with the student.

    The batches are noise. `losses` makes images from the noise, calls `train_generator`, and returns the student's
    loss and `self.generator_terms`. The generator's step is part of `losses`, so that one CUDA graph contains both
    steps. `self.images` are the images of the last step of the student.
    """

    student_steps = 1  # steps of the student per iteration

    @dataclass
    class Params(DataFree.Params):
        iterations_per_epoch: int = key("iterations per epoch; there is no training set", low=1)
        noise_size: int = key("length of the noise vector z", low=1)
        generator_channels: int = key(
            "channels of the generator's first convolution; the second has half as many", default=128, low=2
        )
        generator_eps: float = key(
            "eps of the batch norms after the generator's first two convolutions", default=1e-5, above=0
        )
        generator_learning_rate: float = key("initial learning rate of the generator", above=0)
        generator_gamma: float = key(
            "factor by which the generator's learning rate is multiplied at each epoch in schedule", above=0
        )

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        options = params.noise_size, params.generator_channels, params.generator_eps
        generator = Generator(zoo.spec.image_size, *options)
        self.generator = zoo.place(generator)
        self.generator_parameters = list(self.generator.parameters())
        rate = params.generator_learning_rate
        self.generator_optimizer = torch.optim.Adam(self.generator_parameters, rate, fused=True)
        self.generator_terms, self.images = {}, None

    def extra(self):
        return {"generator": self.generator, "generator_optimizer": self.generator_optimizer}

    def batches(self, loader):
        return Batches(self.epoch_batches(loader.epoch), self.params.iterations_per_epoch * self.student_steps)

    def epoch_batches(self, epoch):
        p = self.params
        rate = get_lr(p.generator_learning_rate, p.schedule, p.generator_gamma, epoch)
        self.generator_optimizer.param_groups[0]["lr"] = rate
        for _ in range(p.iterations_per_epoch):
            yield from self.iteration()
        self.save_grid(epoch, pixels(self.images, self.zoo.spec))

    def iteration(self):
        """Yield the `student_steps` batches of one iteration. A batch is a tuple of arguments for `losses`."""
        yield (self.noise(),)

    def noise(self):
        """Standard normal noise z, (batch_size, noise_size)."""
        return torch.randn(self.params.batch_size, self.params.noise_size, device=self.zoo.device)

    def train_generator(self, terms):
        """Make one optimizer step on terms["generator"]. `self.generator_terms` are all `terms` without gradients."""
        self.generator_optimizer.zero_grad(set_to_none=True)
        terms["generator"].backward(inputs=self.generator_parameters)
        self.generator_optimizer.step()
        self.generator_terms = {name: value.detach() for name, value in terms.items()}
