"""Fast data-free distillation, "Up to 100× Faster Data-Free Knowledge Distillation": Fang et al., AAAI 2022.

min_s  T² KL( σ_T(t(x)) ‖ σ_T(s(x)) )        x  images of all rounds so far, see method/meta_generator.py
s      the student, trained                  t  the teacher, frozen        σ_T  softmax(·/T)

The generator G is meta-trained: its weights are a good initialisation, from which a few optimizer steps make a batch of
images. A round trains a copy G' of G to make one batch. Then the student is trained for `student_steps` steps. Before
the first epoch there are `warm_up_rounds` rounds with a_adv = 0 and without steps of the student. Each batch is saved
in the run folder as images/N.tar. As in deepinversion.py, images are made without the release rule, and the student
learns from the rule's answers. docs/methods.md lists the differences from the released code.
"""

import itertools
from dataclasses import dataclass

import torch

from method.datafree import IRRELEVANT, Batches, DataFree, pixels
from method.inversion import batch_norms, no_batch_norm
from method.meta_generator import TERMS, meta_optimizer, synthesise
from model.generator import Generator
from utils import checkpoint, data
from utils.errors import UserError
from utils.keys import key
from utils.losses import kl


class FastDataFree(DataFree):
    @dataclass
    class Params(DataFree.Params):
        temperature: float = key("T, temperature of the distillation", default=20.0, above=0)
        rounds_per_epoch: int = key(
            "number of rounds per epoch, each of which makes one batch of images", default=1, low=1
        )
        student_steps: int = key("steps of the student after each round", default=400, low=1)
        warm_up_rounds: int = key(
            "number of rounds before the first epoch, with a_adv = 0 and no steps of the student", default=20, low=0
        )
        generator_steps: int = key("k, number of steps on the generator G' and the noise z", default=5, low=1)
        generator_learning_rate: float = key(
            "learning rate of G' in a round; that of G is k times as large", default=0.003, above=0
        )
        noise_learning_rate: float = key("learning rate of z in a round", default=0.01, above=0)
        noise_size: int = key("length of the noise vector z", default=256, low=1)
        generator_channels: int = key(
            "channels of the generator's first convolution; the second has half as many", default=128, low=2
        )
        a_bn: float = key("weight of the distances between batch-norm statistics", default=10.0, low=0)
        a_oh: float = key("weight of the cross-entropy between the teacher's answer and the class", default=0.5, low=0)
        a_adv: float = key("weight of A, the divergence between teacher and student", default=1.33, low=0)

        @staticmethod
        def problems(params, networks):
            problems = DataFree.Params.problems(params, networks)
            if not batch_norms(networks["teacher_model"]):
                problems.append(f'"teacher_model": {no_batch_norm(params.teacher_model)}')
            return problems

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        p = params
        self.generator = zoo.place(Generator(zoo.spec.image_size, p.noise_size, p.generator_channels))
        self.generator_optimizer = meta_optimizer(self.generator, p.generator_learning_rate, p.generator_steps)
        self.pool = []  # the images of all batches, float16 (N, H, W, 3), 0 to 255 without clipping

    def extra(self):
        return {"generator": self.generator, "generator_optimizer": self.generator_optimizer}

    def losses(self, images, labels, values=()):
        """values: TERMS of the last round, which are logged. labels: not used."""
        T = self.params.temperature
        divergence = kl(self.teacher(images), self.model(images), T)
        return {"loss": T**2 * divergence} | dict(zip(TERMS, values, strict=False))

    def batches(self, loader):
        return Batches(self.epoch_batches(loader.epoch), self.params.rounds_per_epoch * self.params.student_steps)

    def epoch_batches(self, epoch):
        p = self.params
        if epoch == 0:
            for _ in range(p.warm_up_rounds):
                self.round(0.0)
        else:  # if the run was interrupted, the images of earlier rounds are read
            earlier_rounds = p.warm_up_rounds + epoch * p.rounds_per_epoch
            self.pool += [self.read(number) for number in range(len(self.pool), earlier_rounds)]
        for number in range(epoch * p.rounds_per_epoch, (epoch + 1) * p.rounds_per_epoch):
            values = self.round(p.a_adv)
            for images, labels in itertools.islice(self.passes(number), p.student_steps):
                yield images, labels, values
        self.save_grid(epoch, self.pool[-1].permute(0, 3, 1, 2) / 255)

    def passes(self, number):
        """An endless iterator over batches of all images so far. number: the current round, without the warm-up.

        Each pass over the images has another order. A round has at most `student_steps` passes.
        """
        images, spec = torch.cat(self.pool), self.zoo.spec
        split = data.Split(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))
        augmentation = spec.augmentation if self.params.augmentation else ()
        loader = data.Loader(split, spec, self.params.batch_size, augmentation, shuffle=True, seed=self.params.seed)
        for index in itertools.count(number * self.params.student_steps):
            loader.set_epoch(index)
            yield from loader

    def round(self, a_adv):
        """Make a batch of images and add it to the pool. Returns its TERMS, (4,)."""
        p, device = self.params, self.zoo.device
        z = torch.randn(p.batch_size, p.noise_size, device=device)
        labels = torch.randint(self.zoo.spec.num_classes, (p.batch_size,), device=device)
        rates = {"learning_rate": p.generator_learning_rate, "noise_learning_rate": p.noise_learning_rate}
        weights = {"a_bn": p.a_bn, "a_oh": p.a_oh, "a_adv": a_adv}
        network, student = self.teacher.teacher, self.model.eval()  # the network without the release rule
        networks = self.generator, self.generator_optimizer, network, student
        images, values = synthesise(*networks, z, labels, steps=p.generator_steps, **rates, **weights)
        self.model.train()
        images = (255 * pixels(images, self.zoo.spec)).permute(0, 2, 3, 1).half().contiguous()
        if self.folder:
            content = {"images": images.cpu(), "made_from": self.made_from()}
            checkpoint.save(self.image_file(f"{len(self.pool):04}.tar"), content)
        self.pool.append(images)
        return values

    def read(self, number):
        """Read batch `number` of an interrupted run."""
        name, advice = f"{number:04}.tar", "move the *.tar files away to train from scratch"
        try:
            batch = checkpoint.load(self.image_file(name))
        except UserError as error:
            raise UserError(f"{error}; {advice}") from None
        if batch.get("made_from") != self.made_from():
            raise UserError(f"images/{name}: made by a run with other parameters; {advice}")
        return batch["images"].to(self.zoo.device)

    def made_from(self):
        """All parameters that the images depend on."""
        return {name: value for name, value in vars(self.params).items() if name not in IRRELEVANT} | self.zoo.origins
