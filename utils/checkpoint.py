"""Checkpoints: plain tensors in the released layout, written whole or not at all, and never unpickled."""

import hashlib
import os
import pickle
import shlex
from pathlib import Path

import torch

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PREFIXES = ("module.", "_orig_mod.")


def locate(path):
    """The file that a `*_resume` key names: relative paths start at the project root."""
    return ROOT / path


def save(path, content):
    """Write the dictionary `content` as a checkpoint."""
    replace(path, lambda file: torch.save(content, file))


def replace(path, write):
    """Call `write` with a binary file, so that a kill at any moment leaves the old `path` or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(path):
    """The dictionary in a checkpoint, on the CPU. UserError: missing, truncated, or more than plain tensors."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{shown(path)}: there is no such checkpoint{remedy(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error):
            raise UserError(f"{shown(path)}: truncated, or no checkpoint{remedy(path)}") from None
        raise UserError(f"{shown(path)}: holds more than plain tensors; not loaded, as it could run code") from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError):
        raise UserError(f"{shown(path)}: truncated, or no checkpoint{remedy(path)}") from None
    if not isinstance(content, dict):
        raise UserError(f'{shown(path)}: no checkpoint; it must be a dictionary with a "state_dict"')
    return content


def state_dict(content, path):
    """The weights of a checkpoint, without the prefixes that DataParallel and torch.compile put before names."""
    weights = content.get("state_dict", content)
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f'{shown(path)}: no checkpoint; it must be a dictionary with a "state_dict"')
    return {strip(name): value for name, value in weights.items()}


def strip(name):
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def fill(network, content, path):
    """Put the weights of the checkpoint `content` into `network`; a UserError where they do not fit."""
    weights, wanted = state_dict(content, path), network.state_dict()
    misfits = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if weights[name].shape != wanted[name].shape
    ]
    absent, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    misfits = sorted(misfits)[:2] + [f"no {name}" for name in absent[:1]] + [f"{name} too many" for name in extra[:1]]
    if misfits:
        made_by = content.get("params", {}).get("model_name")
        made_by = f' It holds a "{made_by}".' if made_by else ""
        kind = f"{type(network).__name__} for {network.num_classes} classes"
        raise UserError(f"{shown(path)}: other weights than a {kind} has: {', '.join(misfits)}.{made_by}")
    network.load_state_dict(weights, assign=next(network.parameters()).is_meta)


def digest(network):
    """A short fingerprint of the weights, to notice that a file has changed."""
    total = hashlib.sha256()
    for tensor in network.state_dict().values():
        total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def shown(path):
    """`path` as users write it: from the project root where it lies below."""
    path = Path(path).absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def remedy(path):
    """'; make it with: …' where the checkpoint is the output of an experiment."""
    from utils import params

    folder = Path(path).parent
    if not (folder / "params.json").is_file():
        return ""
    script = params.SCRIPTS[params.kind_of(params.read(folder / "params.json"))]
    return f"; make it with: python {script} --save_path {shlex.quote(shown(folder))}"
