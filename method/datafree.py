"""What the data-free attacks share: batches that no training image is in, and a generator that makes them.

These thieves hold the teacher: they read its features and the gradient of its answers. A release rule is part of what
they hold, so every pass goes through it, unless a file says otherwise.
"""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torchvision.utils import save_image

from method.attack import Attack
from model.generator import Generator
from utils import checkpoint, distributed, engine
from utils.errors import UserError
from utils.keys import key


class Batches:
    """An iterable of known length."""

    def __init__(self, batches, length):
        self.batches, self.length = batches, length

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return self.length


class DataFree(Attack):
    """An attack that asks the loader for nothing but the number of the epoch."""

    @dataclass
    class Params(Attack.Params):
        grid_every: int = key("epochs between two grids of images, images/epochN.png; 0: none", default=50, low=0)

        @staticmethod
        def problems(params, networks):
            few = f'"batch_size": must be at least 2 for the batch norm, not {params.batch_size}'
            return [few] if params.batch_size < 2 else []

    def __init__(self, params, zoo):
        if distributed.WORLD_SIZE > 1:
            raise UserError(f'"{params.method}" runs in one process, not in {distributed.WORLD_SIZE}')
        super().__init__(params, zoo)

    def draw_grid(self, epoch, shown):
        """Every few epochs, and after the last, write the first 64 of these `pixels` into the run folder."""
        every, done = self.params.grid_every, epoch + 1
        if self.folder and every and (done % every == 0 or done == self.params.num_epochs):
            write = partial(save_image, shown[:64], format="png")
            checkpoint.replace(self.image_file(f"epoch{done:04}.png"), write)

    def image_file(self, name):
        """The path of a file in `images` in the run folder."""
        (self.folder / "images").mkdir(exist_ok=True)
        return self.folder / "images" / name


def pixels(images, spec):
    """Normalised images (N, 3, H, W) as they are looked at: 0 is black, 1 is white. Not clipped."""
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (spec.mean, spec.std))
    return images * std + mean


class Generating(DataFree):
    """An attack with a generator, `self.generator`, which a step of it trains before the student.

    Its batches are noise; `losses` makes the images, and leaves them in `self.images`.
    """

    student_steps = 1  # in an iteration

    @dataclass
    class Params(DataFree.Params):
        iterations_per_epoch: int = key("there is no training set to pass over", low=1)
        noise_size: int = key("length of z", low=1)
        generator_channels: int = key("of its first convolution; the second has half", default=128, low=2)
        generator_eps: float = key("of the batch norms behind its convolutions", default=1e-5, above=0)
        generator_learning_rate: float = key("of its Adam, at the first epoch", above=0)
        generator_gamma: float = key("factor of its learning rate at the epochs of schedule", above=0)

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        options = params.noise_size, params.generator_channels, params.generator_eps
        generator = Generator(zoo.spec.image_size, *options)
        self.generator = zoo.place(generator)
        self.weights = list(self.generator.parameters())
        self.optimizer = torch.optim.Adam(self.weights, params.generator_learning_rate, fused=True)
        self.generator_terms, self.images = {}, None

    def extra(self):
        return {"generator": self.generator, "generator_optimizer": self.optimizer}

    def batches(self, loader):
        return Batches(self.epoch(loader.epoch), self.params.iterations_per_epoch * self.student_steps)

    def epoch(self, epoch):
        p = self.params
        own = SimpleNamespace(learning_rate=p.generator_learning_rate, schedule=p.schedule, gamma=p.generator_gamma)
        self.optimizer.param_groups[0]["lr"] = engine.learning_rate(own, epoch)
        for _ in range(p.iterations_per_epoch):
            yield from self.iteration()
        self.draw_grid(epoch, pixels(self.images, self.zoo.spec))

    def iteration(self):
        """`student_steps` batches of noise, as `losses` wants them."""
        yield (self.noise(),)

    def noise(self):
        """z, normal (batch_size, noise_size)."""
        return torch.randn(self.params.batch_size, self.params.noise_size, device=self.zoo.device)

    def step_generator(self, terms):
        """Minimise terms["generator"] by one step; all `terms` are logged beside the student's."""
        self.optimizer.zero_grad(set_to_none=True)
        terms["generator"].backward(inputs=self.weights)
        self.optimizer.step()
        self.generator_terms = {name: value.detach() for name, value in terms.items()}
