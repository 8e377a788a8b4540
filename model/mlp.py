"""The multilayer perceptron of Nasty Teacher (Ma et al., ICLR 2021), for 32x32 images.

As in the released code, the last layer also has a ReLU, so logits are never negative.
"""

import torch.nn.functional as F
from torch import nn

from model.network import Network


class MLP(Network):
    image_size = 32

    def __init__(self, num_classes):
        super().__init__()
        self.fc1 = nn.Linear(3 * 32 * 32, 512)
        self.fc2 = nn.Linear(512, 512)
        self.fc3 = nn.Linear(512, num_classes)

    def features(self, images):
        return F.relu(self.fc2(F.relu(self.fc1(images.flatten(1)))))

    def head(self, features):
        return F.relu(self.fc3(features))
