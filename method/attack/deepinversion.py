"""DeepInversion: Yin et al., CVPR 2020. Distillation on images made from the teacher's batch-norm statistics.

min_s  T² KL( σ_T(t(x)) ‖ σ_T(s(x)) )        x  images that minimise the loss in method/inversion.py
s      the student, trained                  t  the teacher, frozen        σ_T  softmax(·/T)

At the start of each epoch, `new_batches` batches of images are made, until there are `image_batches`. An epoch is a
pass over all images made so far. With a_c > 0 (Adaptive DeepInversion), the images also depend on the current student.
Each batch is saved in the run folder as images/N.tar, so that a continued run does not make it again. The attacker uses
the teacher's batch norm and therefore has the network. So the images are made without the release rule. The student
learns from the rule's answers.
"""

from dataclasses import dataclass

import torch

from method.datafree import IRRELEVANT, Batches, DataFree, pixels
from method.inversion import batch_norms, invert, no_batch_norm
from utils import checkpoint, data
from utils.epochs import derive_seed
from utils.errors import UserError
from utils.keys import key
from utils.losses import kl

IMAGES = 5  # a part of the seeds of images, so that these seeds differ from the other seeds of the run


class DeepInversion(DataFree):
    @dataclass
    class Params(DataFree.Params):
        temperature: float = key(
            "T, temperature of the distillation and of the Jensen-Shannon divergence JS", default=3.0, above=0
        )
        image_batches: int = key("total number of batches of images, each with batch_size images", default=1000, low=1)
        new_batches: int = key("number of batches of images that are made at the start of an epoch", default=10, low=1)
        inversion_steps: int = key("number of optimizer steps on the pixels of a batch", default=2000, low=1)
        inversion_learning_rate: float = key("learning rate of the optimizer of the pixels", default=0.05, above=0)
        jitter: int = key("largest random shift of the images in a step, in pixels", default=2, low=0)
        flip: bool = key("mirror the images at random in each step", default=False)
        a_tv: float = key("weight of the total variation of the images", default=2.5e-5, low=0)
        a_l2: float = key("weight of the L2 norm of the images", default=0.0, low=0)
        a_f: float = key("weight of the distances between batch-norm statistics", default=10.0, low=0)
        a_c: float = key("weight of 1 − JS; if above 0, the images depend on the student", default=0.0, low=0)

        @staticmethod
        def problems(params, networks):
            problems = DataFree.Params.problems(params, networks)
            if not batch_norms(networks["teacher_model"]):
                problems.append(f'"teacher_model": {no_batch_norm(params.teacher_model)}')
            return problems

    def __init__(self, params, zoo):
        super().__init__(params, zoo)
        self.pool = []  # (images, labels) of all batches. images: float16 (N, H, W, 3), 0 to 255 without clipping

    def losses(self, images, labels):
        divergence = kl(self.teacher(images), self.model(images), self.params.temperature)
        return {"loss": self.params.temperature**2 * divergence}

    def batches(self, loader):
        count = min(self.params.image_batches, (loader.epoch + 1) * self.params.new_batches)
        return Batches(self.epoch_batches(loader.epoch, count), count)

    def epoch_batches(self, epoch, count):
        """Make batches of images until there are `count`, and yield all of them in random order, augmented."""
        p, spec, device = self.params, self.zoo.spec, self.zoo.device
        for number in range(len(self.pool), count):
            batch = self.read(number) or self.make(number, epoch)
            self.pool.append((batch["images"].to(device), batch["labels"].to(device)))
        images, labels = zip(*self.pool, strict=True)
        split = data.Split(torch.cat(images), torch.cat(labels))
        augmentation = spec.augmentation if p.augmentation else ()
        loader = data.Loader(split, spec, p.batch_size, augmentation, shuffle=True, seed=p.seed)
        loader.set_epoch(epoch)
        yield from loader
        self.save_grid(epoch, images[-1].permute(0, 3, 1, 2) / 255)

    def read(self, number):
        """Batch `number` from the run folder; None if it is missing or was made with other settings."""
        file = self.folder and self.image_file(f"{number:04}.tar")
        batch = checkpoint.load(file) if file and file.exists() else {}
        return batch if batch.get("made_from") == self.made_from() else None

    def make(self, number, epoch):
        """Make batch `number`, a function of the seed and, with a_c > 0, of the student."""
        p, name = self.params, f"{number:04}.tar"
        if p.a_c > 0 and number < epoch * p.new_batches:
            raise UserError(
                f"images/{name} is missing or was made with other settings. It cannot be made again, because the "
                "student has changed; move the *.tar files away to train from scratch"
            )
        seed = derive_seed(p.seed, number, IMAGES)
        labels = torch.arange(number * p.batch_size, (number + 1) * p.batch_size) % self.zoo.spec.num_classes
        title = f"Images {number + 1}/{p.image_batches}"
        options = self.settings() | {"student": self.model.eval(), "seed": seed, "title": title}
        options["log"] = (lambda line: self.log(f"{title}: {line}")) if p.cuda_graph and self.folder else None
        network = self.teacher.teacher  # without the release rule
        x, terms = invert(network, labels.to(self.zoo.device), **options)
        self.model.train()
        terms = {name: value.item() for name, value in terms.items()}
        batch = {"terms": terms, "made_from": self.made_from()}
        batch |= {"images": (255 * pixels(x, self.zoo.spec)).permute(0, 2, 3, 1).half().contiguous(), "labels": labels}
        if self.folder:
            self.log(f"{title}: " + " ; ".join(f"{name}: {value:.4g}" for name, value in terms.items()))
            checkpoint.save(self.image_file(name), batch)
        return batch

    def settings(self):
        """The arguments of `invert` that are the same for all batches."""
        p = self.params
        settings = {"image_size": self.zoo.spec.image_size, "flip": bool(p.flip), "T": p.temperature}
        settings |= {"steps": p.inversion_steps, "learning_rate": p.inversion_learning_rate, "jitter": p.jitter}
        return settings | {"a_tv": p.a_tv, "a_l2": p.a_l2, "a_f": p.a_f, "a_c": p.a_c}

    def made_from(self):
        """All parameters that the images depend on. With a_c > 0 these include the keys of the student's training."""
        values, names = vars(self.params), {"seed", "batch_size", "precision", "dataset"}
        if self.params.a_c > 0:
            names = values.keys() - IRRELEVANT
        return {name: values[name] for name in names} | self.settings() | self.zoo.origins
