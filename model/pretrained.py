"""The index of trained networks, model/pretrained.json: {name: card}. See `model.load_model`.

`results.py EXPERIMENT --export` writes both the index and the files in model/weights/, which hold weights only.
"""

import hashlib
from pathlib import Path

import torch

from utils import checkpoint
from utils.errors import UserError, suggest
from utils.paths import display_path, from_root, read_json

INDEX, WEIGHTS = "model/pretrained.json", "model/weights"


def cards():
    """{name: card} of all trained networks. A card describes a network, and names the files with its weights."""
    return read_json(from_root(INDEX)) if from_root(INDEX).is_file() else {}


def locate(name):
    """(card, checkpoint) of the trained network `name`.

    The checkpoint is that of the finished run on this machine, or else the exported file, or else a download of the
    exported file. The SHA-256 of an exported or downloaded file is checked.
    """
    known = cards()
    if name not in known:
        there_are = ", ".join(known) or "none yet"
        raise UserError(f'no trained network "{name}"; there are {there_are}{suggest(name, known)}')
    card = known[name]
    if ":" in card["model_name"]:
        raise UserError(f'{INDEX}: "{name}": networks of other code cannot be loaded by name')
    return card, local_run(card) or exported_file(name, card)


def local_run(card):
    """The checkpoint of a card's experiment on this machine; None if there is no finished run."""
    file = from_root(card["checkpoint"])
    last = checkpoint.peek(file.with_name("last_model.tar"))
    finished = {"epoch", "params"} <= last.keys() and last["epoch"] >= last["params"]["num_epochs"]
    return file if finished and file.is_file() else None


def exported_file(name, card):
    """The exported file of a card, from this repository or the card's URL. Raises UserError if its SHA-256 differs."""
    file = from_root(card["file"])
    if not file.is_file() and card.get("url"):
        file = Path(torch.hub.get_dir()) / "checkpoints" / f"{card['sha256'][:16]}-{file.name}"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(card["url"], file, card["sha256"], progress=False)
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(f"{name}: download of {card['url']} failed: {error}") from None
    if not file.is_file():
        train = f"train {display_path(from_root(card['checkpoint']).parent)} instead"
        raise UserError(f"{name}: {display_path(file)} is missing, and its card has no URL; {train}")
    if sha256(file) != card["sha256"]:
        raise UserError(f"{name}: {display_path(file)} is not the file of its card: its SHA-256 differs; delete it")
    return file


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()
