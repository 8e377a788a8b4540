"""Checkpoints: plain tensors in the released layout, loaded with `weights_only=True`."""

import io
import json
import pickle
import warnings
from pathlib import Path

import torch

from utils.digest import digests, intact, intact_zip, tensors_digest, without_digests
from utils.errors import CheckpointError
from utils.keys import shorten
from utils.paths import display_path, write_file

PREFIXES = ("module.", "_orig_mod.")  # which DataParallel and torch.compile put before the names of weights
FIELDS = {"params": dict, "optim_dict": dict, "epoch": int, "best": tuple}  # items in the checkpoint of a run
MORE_FIELDS = {"extra": dict, "origins": dict, "environment": str, "command": str}  # may be missing in old checkpoints
WEIGHTS = ("state_dict", "model_state_dict", "model")  # items with the weights; without them, all items are weights


def save(path, content, shared=False):
    """Write the dictionary `content` as a checkpoint. shared: see `write_file`.

    Raises UserError if the file cannot be written, for example on a full disk.
    """
    write(path, packed(content), shared)


def packed(content):
    """The bytes of a checkpoint file with the dictionary `content` and its digests."""
    content = without_digests(content)
    values, tensors = digests(content)
    buffer = io.BytesIO()  # not a file, because the errors of torch.save to a file do not name the cause
    torch.save(content | {"digests": {"values": values, "tensors": tensors()}}, buffer)
    return buffer.getbuffer()


def write(path, data, shared=False):
    """Write the bytes `data`, which `packed` returned. shared and errors: see `save`."""
    write_file(path, lambda file: file.write(data), shared)


def load(path):
    """The dictionary in a checkpoint, on the CPU, without its digests.

    Raises CheckpointError if the file is missing, truncated or damaged, or holds more than plain tensors. Damage is
    found by the digests in the checkpoints of this project, and by the checksums of the zip format in others.
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
            problem = "holds more than plain tensors; not loaded, because it could run code"
            raise CheckpointError(problem, None, display_path(path)) from None
        raise CheckpointError("not a checkpoint, or truncated", path, display_path(path)) from None
    except PermissionError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", None, display_path(path)) from None
    except Exception:  # damaged files fail in many ways
        raise CheckpointError("not a checkpoint, or truncated", path, display_path(path)) from None
    if not isinstance(content, dict):
        raise not_a_checkpoint(path)
    if not (intact(content, tensors=True) if "digests" in content else intact_zip(path)):
        raise CheckpointError("damaged: its digest differs", path, display_path(path))
    return without_digests(content)


def not_a_checkpoint(path):
    names = ", ".join(f'"{name}"' for name in WEIGHTS)
    problem = f"not a checkpoint; it must be a dictionary of tensors, or have such a dictionary as {names}"
    return CheckpointError(problem, None, display_path(path))


def peek(path):
    """The dictionary in a checkpoint of a run of this project. The tensors are memory-mapped, so they are not read.

    Returns {} if the file cannot be read, is damaged outside of the tensors, or is not such a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return {}
    whole = is_of_a_run(content) and ("digests" not in content or intact(content, tensors=False))
    return content if whole else {}


def is_of_a_run(content):
    """Whether the content of a checkpoint has everything that a run of this project needs to continue."""
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in FIELDS.items()):
        return False
    if not all(isinstance(content.get(name, kind()), kind) for name, kind in MORE_FIELDS.items()):
        return False
    best = content["best"]  # (epoch, accuracy)
    return len(best) == 2 and all(type(x) in (int, float) for x in best) and is_plain(content["params"])


def is_plain(params):
    """Whether `params` is a dictionary of JSON values whose names are strings."""
    try:
        return isinstance(params, dict) and all(isinstance(name, str) for name in params) and bool(json.dumps(params))
    except (TypeError, ValueError, RecursionError):
        return False


def params_in(content, path):
    """The parameters in the checkpoint `content`; {} if it has none, as in released checkpoints.

    Raises CheckpointError if they are not valid. path: the file that the message names.
    """
    params = content.get("params", {})
    if not is_plain(params):
        raise CheckpointError('"params" is not a dictionary of JSON values', None, display_path(path))
    return params


def state_dict(content, path):
    """{name: weight} in the checkpoint `content`, without the prefixes of DataParallel and torch.compile.

    Raises CheckpointError if they are not plain finite tensors. path: the file that the message names.
    """
    weights = next((content[name] for name in WEIGHTS if name in content), content)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise not_a_checkpoint(path)
    for name, value in weights.items():
        problem = fault(value) if isinstance(name, str) else "the name of weights must be a string"
        if problem:
            raise CheckpointError(f"{shorten(str(name))}: {problem}", None, display_path(path))
    return {without_prefix(name): value for name, value in weights.items()}


def fault(tensor):
    """Why `tensor` cannot be used as weights or images, as the end of a sentence; None if it can."""
    if tensor.is_meta:
        return "has no values"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "is not a plain tensor"
    if tensor.is_complex():
        return "has complex numbers"
    return None if tensor.float().isfinite().all() else "has values that are NaN or infinite"


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
        stored = params_in(content, path).get("model_name")
        stored = f' The file holds the weights of a "{stored}".' if stored else ""
        kind = f"{getattr(network, 'name', type(network).__name__)} for {network.num_classes} classes"
        problem = f"weights do not fit a {kind}: {', '.join(misfits)}.{stored}"
        raise CheckpointError(problem, None, display_path(path))
    weights = {name: weight.to(expected[name].dtype) for name, weight in weights.items()}
    network.load_state_dict(weights, assign=next(network.parameters()).is_meta)


def weights_digest(weights):
    """The first 16 hexadecimal digits of the SHA-256 of all tensors in a state_dict."""
    return tensors_digest(weights.values())[:16]
