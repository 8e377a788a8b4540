"""Networks for one run: for its data set, on its device, in its precision."""

import torch
from torch import nn

import model
from utils import checkpoint
from utils.params import model_options


class Zoo:
    """Makes a run's networks.

    spec: has `num_classes` and `image_size`. `origins` records what was loaded: {path: fingerprint}, so that
    a run continued with another teacher than it began with is noticed.
    """

    def __init__(self, spec, device, bf16=False):
        self.spec, self.device, self.bf16 = spec, device, bf16
        self.origins = {}

    def trained(self, params):
        """The network that `params` describes, with random weights or those of `params.resume`."""
        network = self.fresh(params.model_name, **model_options(params))
        if params.resume:
            self.fill(network, params.resume)
        return network

    def fresh(self, name, **options):
        """A network with random weights from PyTorch's global generator."""
        return self.place(model.build(name, self.spec.num_classes, self.spec.image_size, **options))

    def frozen(self, name, path):
        """The network `name` with the weights in the checkpoint `path`: in eval mode, without gradients.

        Its options (such as `num_channels` of `net`) are those the checkpoint was trained with.
        """
        content = checkpoint.read(checkpoint.locate(path))
        trained_with = content.get("params", {})
        options = {key: trained_with[key] for key in model.options(name) if key in trained_with}
        with torch.device("meta"):
            network = model.build(name, self.spec.num_classes, self.spec.image_size, **options)
        self.fill(network, path, content)
        return self.freeze(network)

    def freeze(self, network):
        """The network in its place, in eval mode, without gradients.

        Weights that autocast casts in each pass, as it keeps the casts of those alone that are trained, are cast here,
        once and to the same bits.
        """
        network = self.place(network).eval().requires_grad_(False)
        for part in network.modules():
            if self.bf16 and isinstance(part, (nn.Conv2d, nn.Linear)):
                part.to(torch.bfloat16)
        return network

    def fill(self, network, path, content=None):
        file = checkpoint.locate(path)
        checkpoint.fill(network, content or checkpoint.read(file), file)
        self.origins[checkpoint.shown(file)] = checkpoint.digest(network)

    def place(self, network):
        network.bf16 = self.bf16
        return network.to(self.device, memory_format=torch.channels_last)
