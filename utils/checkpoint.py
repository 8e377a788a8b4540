"""Checkpoints: plain tensors in the released layout, loaded with `weights_only=True`."""

import hashlib
import io
import pickle
import warnings
from pathlib import Path

import torch

from utils.errors import CheckpointError
from utils.paths import display_path, write_file

PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile

WEIGHTS = ("state_dict", "model_state_dict", "model")  # where other projects keep the weights, if not at the top


def save(path, content):
    """Write the dictionary `content` as a checkpoint. Raises UserError if that fails, for example on a full disk."""
    buffer = io.BytesIO()  # torch.save to a file hides the cause of an error
    torch.save(content, buffer)
    write_file(path, lambda file: file.write(buffer.getbuffer()))


def load(path):
    """The dictionary in a checkpoint, on the CPU.

    Raises CheckpointError if the file is missing or truncated, or holds more than plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("there is no such checkpoint", path, display_path(path))
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            if not file.read(2).startswith((b"PK", b"\x80")):
                raise EOFError("neither a zip file nor a pickle")
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(word in str(error) for word in ("Unsupported", "GLOBAL", "allowlist")):
            problem = "holds more than plain tensors; not loaded, as it could run code"
            raise CheckpointError(problem, None, display_path(path)) from None
        raise CheckpointError("not a checkpoint, or truncated", path, display_path(path)) from None
    except Exception:  # damaged files fail in many ways
        raise CheckpointError("not a checkpoint, or truncated", path, display_path(path)) from None
    if not isinstance(content, dict):
        raise not_a_checkpoint(path)
    return content


def not_a_checkpoint(path):
    return CheckpointError('not a checkpoint; it must be a dictionary with a "state_dict"', None, display_path(path))


def peek(path):
    """Like `load`, but tensors stay on the disk (memory-mapped). Returns {} for a file that cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return {}


def state_dict(content, path):
    """The weights in the checkpoint `content`, without the prefixes of DataParallel and torch.compile."""
    weights = next((content[name] for name in WEIGHTS if name in content), content)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise not_a_checkpoint(path)
    return {without_prefix(name): value for name, value in weights.items()}


def without_prefix(name):
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def load_weights(network, content, path):
    """Load the weights of the checkpoint `content` into `network`. Raises CheckpointError if they do not fit."""
    weights, expected = state_dict(content, path), network.state_dict()
    misfits = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    misfits = (
        sorted(misfits)[:2] + [f"no {name}" for name in missing[:1]] + [f"unexpected {name}" for name in extra[:1]]
    )
    if misfits:
        made_by = content.get("params")
        made_by = made_by.get("model_name") if isinstance(made_by, dict) else None
        made_by = f' It holds a "{made_by}".' if made_by else ""
        kind = f"{getattr(network, 'name', type(network).__name__)} for {network.num_classes} classes"
        problem = f"weights do not fit a {kind}: {', '.join(misfits)}.{made_by}"
        raise CheckpointError(problem, None, display_path(path))
    weights = {name: weight.to(expected[name].dtype) for name, weight in weights.items()}
    network.load_state_dict(weights, assign=next(network.parameters()).is_meta)


def weights_digest(weights):
    """The first 16 hexadecimal digits of the SHA-256 of all tensors in a state_dict, to detect changed files."""
    total = hashlib.sha256()
    for tensor in weights.values():
        total.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
