"""Digests (SHA-256), which detect damaged files.

A JSON object has a digest in its item "digest", and a checkpoint has two in its item "digests"; see `sealed` and
`digests`. Files of older versions have no digest and are read without the check. A damaged file of this version does
not pass as an older one, because the change of a single byte cannot both remove a digest and change another item.
Digests do not protect against manipulation: a person who edits a file can also change its digest.
"""

import hashlib
import json
import zipfile

import torch

from utils.errors import UserError


def tensors_digest(tensors):
    """The SHA-256 of the bytes of all tensors, in hexadecimal digits."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def digests(content):
    """The two digests of a checkpoint, a nested dictionary of JSON values and tensors: (values, tensors).

    values: the digest of everything but the bytes of the tensors. tensors: a function that computes the digest of these
    bytes, which takes longer. Raises TypeError if there is a value of another type.
    """
    tensors = []

    def describe(value):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{type(value).__name__} in a checkpoint")
        tensors.append(value)
        return [str(value.dtype), list(value.shape), value.requires_grad]

    text = json.dumps(content, sort_keys=True, default=describe)
    return hashlib.sha256(text.encode()).hexdigest(), lambda: tensors_digest(tensors)


def without_digests(content):
    """The content of a checkpoint without its item "digests"."""
    return {name: value for name, value in content.items() if name != "digests"}


def intact(content, tensors):
    """Whether the digests in the content of a checkpoint are correct. tensors: whether to check the tensors as well."""
    stored = content["digests"]
    try:
        values, digest_of_tensors = digests(without_digests(content))
        return values == stored["values"] and (not tensors or digest_of_tensors() == stored["tensors"])
    except Exception:  # the content has a type that is never saved
        return False


def intact_zip(path):
    """Whether the checksums in the zip file `path` are correct; True for a file in PyTorch's format before 1.6."""
    try:
        return not zipfile.is_zipfile(path) or zipfile.ZipFile(path).testzip() is None
    except Exception:  # damaged files fail in many ways
        return False


def digest(content):
    """The SHA-256 of a dictionary of JSON values without its item "digest"."""
    content = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(content):
    """A copy of a dictionary of JSON values with its digest as the item "digest"."""
    return content | {"digest": digest(content)}


def unsealed(content, where):
    """`content` without its item "digest". Raises UserError if the digest differs from that of the content.

    where: the file, or the line of a file, that the error message names.
    """
    if content.get("digest", digest(content)) != digest(content):
        raise UserError(f"{where}: damaged or edited: its digest differs")
    return {name: value for name, value in content.items() if name != "digest"}


def read_line(line, where):
    """The dictionary in a line of JSON (bytes), without its digest. Raises UserError if it is malformed or damaged."""
    try:
        content = json.loads(line.decode())
        if isinstance(content, dict):
            return unsealed(content, where)
        problem = "must be one object"
    except json.JSONDecodeError as error:
        problem = error.msg
    except (ValueError, RecursionError) as error:
        problem = f"cannot be read: {error}"
    raise UserError(f"{where}: {problem}")
