"""The reference pipeline: what the released code of Nasty Teacher does, with today's PyTorch and its defaults.

PIL images through torchvision's transforms in a DataLoader with 4 workers, float32, contiguous memory, an optimizer
that is not fused, and `loss.item()` in each step. Networks and equations are this project's, which compute the same.
"""

import warnings

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

import method
from benchmarks.pipelines import RandomZoo

WORKERS = 4


class ReferenceZoo(RandomZoo):
    def place(self, network):
        return network.to(self.device)


class PilImages(torch.utils.data.Dataset):
    """The training images as torchvision.datasets.CIFAR10 hands them out."""

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
        # As many as in the released params.json, however few cores there are.
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
        cudnn = torch.backends.cudnn
        ours, cudnn.deterministic = cudnn.deterministic, False
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
        cudnn.deterministic = ours
