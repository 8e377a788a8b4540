"""Checkpoints: plain tensors in the released layout, written whole or not at all, and never unpickled."""

import hashlib
import io
import os
import pickle
import shlex
import warnings
from pathlib import Path

import torch

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PREFIXES = ("module.", "_orig_mod.")


def locate(path):
    """The file that a `*_resume` key names: relative paths start at the project root."""
    return ROOT / path


def save(path, content):
    """Write the dictionary `content` as a checkpoint. UserError: the disk is full, say."""
    buffer = io.BytesIO()  # torch.save hides what went wrong with a file
    torch.save(content, buffer)
    replace(path, lambda file: file.write(buffer.getbuffer()))


def replace(path, write):
    """Call `write` with a binary file, so that a kill at any moment leaves the old `path` or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def read(path, advice=None):
    """The dictionary in a checkpoint, on the CPU. UserError: missing, truncated, or more than plain tensors.

    advice: what to do about it, instead of the command that makes it.
    """
    path = Path(path)
    advice = remedy(path) if advice is None else f"; {advice}"
    if not path.is_file():
        raise UserError(f"{shown(path)}: there is no such checkpoint{advice}")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            if not file.read(2).startswith((b"PK", b"\x80")):
                raise EOFError("neither a zip file nor a pickle")
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(word in str(error) for word in ("Unsupported", "GLOBAL", "allowlist")):  # it would have to be called
            raise UserError(f"{shown(path)}: holds more than plain tensors; not loaded, as it could run code") from None
        raise UserError(f"{shown(path)}: truncated, or no checkpoint{advice}") from None
    except Exception:  # a damaged file fails in a dozen ways
        raise UserError(f"{shown(path)}: truncated, or no checkpoint{advice}") from None
    if not isinstance(content, dict):
        raise UserError(f'{shown(path)}: no checkpoint; it must be a dictionary with a "state_dict"')
    return content


def peek(path):
    """What `read` returns, its tensors left on the disk; {} for a file that cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return {}


def best_is_behind(last, best):
    """Whether `last`, the content of a last_model.tar, is the best epoch, and the file `best` is not yet."""
    return last["best"][0] == last["epoch"] - 1 and peek(best).get("epoch") != last["epoch"]


def state_dict(content, path):
    """The weights of a checkpoint, without the prefixes that DataParallel and torch.compile put before names."""
    weights = content.get("state_dict", content)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
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
    weights = {name: weight.to(wanted[name].dtype) for name, weight in weights.items()}
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
    script = params.SCRIPTS[params.kind_in(folder / "params.json")]
    return f"; make it with: python {script} --save_path {shlex.quote(shown(folder))}"
