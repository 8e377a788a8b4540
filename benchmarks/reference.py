"""The reference pipeline: that of the released code of Nasty Teacher, with the installed PyTorch and its defaults.

It uses PIL images with torchvision's transforms, a DataLoader with 4 workers, float32, contiguous memory format, an
optimizer that is not fused, and `loss.item()` in each step. Networks and losses are those of this project, which are
equal to the released ones.
"""

import contextlib
import multiprocessing
import warnings

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

import method
from benchmarks.pipelines import RandomZoo, load_data, timed
from utils.errors import UserError

WORKERS = 4


class ReferenceZoo(RandomZoo):
    def place(self, network):
        return network.to(self.device)


class PilImages(torch.utils.data.Dataset):
    """The training images as torchvision.datasets.CIFAR10 returns them."""

    def __init__(self, split, spec):
        self.images, self.labels = split.images.cpu().numpy(), split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(spec.mean, spec.std),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Reference:
    def __init__(self, params, dataset, device):
        # 4 workers as in the released params.json, even if there are fewer cores.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        self.device = device
        self.method = method.find(params.method)(params, ReferenceZoo(dataset.spec, device))
        weights, common = self.method.model.parameters(), {"lr": params.learning_rate}
        if params.optimizer == "adam":
            self.optimizer = torch.optim.Adam(weights, **common)
        else:
            common |= {"momentum": params.momentum, "weight_decay": params.weight_decay}
            self.optimizer = torch.optim.SGD(weights, **common)
        self.loader = DataLoader(
            PilImages(dataset.train, dataset.spec),
            batch_size=params.batch_size,
            shuffle=True,
            num_workers=WORKERS,
            pin_memory=device.type == "cuda",
            multiprocessing_context="fork",
        )

    def train(self, loader):
        self.method.model.train()
        total = 0.0
        for images, labels in loader:
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            loss = self.method.losses(images, labels)["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()


class ReferenceProcess:
    """The reference in a process of its own, which process-wide settings of our pipeline do not affect."""

    def __init__(self, params, device, data_dir, images):
        context = multiprocessing.get_context("forkserver")
        self.pipe, worker_end = context.Pipe()
        self.process = context.Process(target=serve, args=(worker_end, params, device, data_dir, images))
        self.process.start()
        worker_end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pipe.close()  # ends the process
        self.process.join()

    def seconds_per_image(self, steps, warmup):
        """See `benchmarks.pipelines.timed`. steps: 0 means a whole epoch."""
        try:
            self.pipe.send((steps, warmup))
            return self.pipe.recv()
        except (EOFError, OSError):
            raise UserError("the process of the reference failed; see its error message above") from None


def serve(pipe, params, device, data_dir, images):
    """For each message (steps, warmup), time the reference and send the seconds per image."""
    reference = Reference(params, load_data(data_dir, device, images), device)
    with contextlib.suppress(EOFError):
        while True:
            steps, warmup = pipe.recv()
            pipe.send(timed(reference, steps or len(reference.loader), warmup, device).seconds_per_image)
