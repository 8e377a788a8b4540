"""Builds the networks of a run: for its data set, on its device, in its precision."""

import json

import torch
from torch import nn

import model
from utils import checkpoint
from utils.errors import CheckpointError, UserError
from utils.keys import shorten
from utils.paths import display_path, from_root


class Zoo:
    """Builds the networks of a run.

    spec: the DataSpec of its data set. bf16: whether networks compute in bfloat16. origins: {path: digest of the
    weights} of all checkpoints that were loaded. They are compared when a run continues, to detect a changed teacher.
    """

    def __init__(self, spec, device, bf16=False):
        self.spec, self.device, self.bf16 = spec, device, bf16
        self.origins = {}

    def trained(self, params):
        """The network to train, with random weights or those of the checkpoint `params.resume`."""
        network = self.fresh(params.model_name, **model.options_in(vars(params), params.model_name))
        if params.resume:
            self.load_weights(network, params.resume)
        return network

    def fresh(self, name, **options):
        """A network with random weights from PyTorch's global generator."""
        return self.place(model.build(name, self.spec.num_classes, self.spec.image_size, **options))

    def frozen(self, name, path):
        """The network `name` with the weights of the checkpoint `path`, in eval mode and without gradients.

        Its options (such as `num_channels` of `net`) are those that the checkpoint was trained with. Raises
        CheckpointError if the file is missing or damaged, or does not fit the network.
        """
        content = checkpoint.load(from_root(path))
        options = model.options_in(checkpoint.params_in(content, from_root(path)), name)
        network = self.without_weights(name, options, path)
        self.load_weights(network, path, content)
        return self.freeze(network)

    def without_weights(self, name, options, path):
        """The network `name` on the meta device. options: those of the checkpoint. path: for error messages."""
        try:
            with torch.device("meta"):
                return model.build(name, self.spec.num_classes, self.spec.image_size, **options)
        except (UserError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            if not options:
                raise
            problem = f"no {name} can be built with its params {shorten(json.dumps(options, default=repr))}: {error}"
            raise CheckpointError(problem.splitlines()[0], None, display_path(from_root(path))) from None

    def freeze(self, network):
        """The network on its device, in eval mode and without gradients.

        Autocast caches casts to bf16 only for weights that are trained, so the weights of frozen networks are cast
        here, once. The results have the same bits.
        """
        network = self.place(network).eval().requires_grad_(False)
        for part in network.modules():
            if self.bf16 and isinstance(part, (nn.Conv2d, nn.Linear)):
                part.to(torch.bfloat16)
        return network

    def load_weights(self, network, path, content=None):
        """Load the checkpoint `path`, or its `content` if that was read before."""
        file = from_root(path)
        checkpoint.load_weights(network, content or checkpoint.load(file), file)
        self.origins[display_path(file)] = checkpoint.weights_digest(network.state_dict())

    def place(self, network):
        """The network on the device, in channels_last memory format and in the run's precision."""
        network.bf16 = self.bf16
        return network.to(self.device, memory_format=torch.channels_last)
