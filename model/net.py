"""The plain convolutional network ("CNN") of Nasty Teacher (Ma et al., ICLR 2021), a student for CIFAR.

It has three blocks of 3x3 convolution, batch norm, 2x2 max-pooling and ReLU, then one hidden linear layer with batch
norm, ReLU and dropout, then the classifier. The hidden layer requires 32x32 images.
"""

import torch.nn.functional as F
from torch import nn

from model.conv import Conv2d
from model.network import Network
from utils.errors import UserError


class Net(Network):
    image_size = 32

    def __init__(self, num_classes, *, num_channels=32, dropout_rate=0.0):
        super().__init__()
        if num_channels < 1:
            raise UserError(f"num_channels must be at least 1, not {num_channels}")
        if not 0 <= dropout_rate < 1:
            raise UserError(f"dropout_rate must be at least 0 and below 1, not {dropout_rate}")
        width = num_channels
        self.conv1 = Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, 2 * width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = Conv2d(2 * width, 4 * width, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.fc1 = nn.Linear(4 * width * 4 * 4, 4 * width)
        self.fcbn1 = nn.BatchNorm1d(4 * width)
        self.fc2 = nn.Linear(4 * width, num_classes)
        self.dropout_rate = dropout_rate

    def features(self, images):
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(images)), 2))
        x = F.relu(F.max_pool2d(self.bn2(self.conv2(x)), 2))
        x = F.relu(F.max_pool2d(self.bn3(self.conv3(x)), 2))
        x = F.relu(self.fcbn1(self.fc1(x.flatten(1))))
        return F.dropout(x, self.dropout_rate, self.training)

    def head(self, features):
        return self.fc2(features)
