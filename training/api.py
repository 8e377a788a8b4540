"""Training from Python: the same runs, files and results as with the training scripts, in this process."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import experiment, params
from training.changes import differences
from utils import data
from utils.errors import UserError
from utils.paths import display_path, make_folder, write_json


@dataclass(frozen=True)
class Trained:
    """A finished run. params: its parameters. metrics: one dictionary per epoch, the lines of metrics.jsonl."""

    folder: Path
    params: dict
    metrics: list

    @property
    def accuracy(self):
        """The best accuracy in percent of all epochs, on the test images, or on validation images if there are any."""
        return max((epoch.get("test") or epoch["validation"])["acc"] for epoch in self.metrics)

    @property
    def checkpoint(self):
        """The weights of the best epoch: a path for `teacher_resume` and similar keys of further runs."""
        return str(self.folder / "best_model.tar")


def run(folder, data_dir=None, quiet=True, **keys):
    """Train the experiment in `folder`, unless it has finished, and return it as a Trained.

    keys: the keys of the params.json to write; see docs/params.md. Without keys, the file must exist. If the run cannot
    begin, the file that was written is removed.
    data_dir: the folder of the data sets; default: $DATA_DIR, or data. quiet: whether to write the log to training.log
    only, and not to print it.
    Raises UserError if a key is wrong or the folder holds a run with other parameters, and Diverged if the loss is NaN.
    """
    folder = Path(folder).absolute()
    path, keys = folder / "params.json", {name: plain(value) for name, value in keys.items()}
    new = not path.exists()
    if keys:
        wanted = vars(params.check(keys, path))
        if path.is_file() and (lines := differences(vars(params.load(folder)), wanted)):
            raise UserError(f"{display_path(path)}: exists with other parameters: {'; '.join(lines)}")
        make_folder(folder)
        write_json(path, keys)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere) if quiet else contextlib.nullcontext():
        try:
            experiment.train(folder, params.load(folder), data_dir or data.default_folder())
        except UserError:
            if new and not (folder / "training.log").exists():
                path.unlink(missing_ok=True)
            raise
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Trained(folder, vars(params.load(folder)), metrics)


def plain(value):
    """A value of a key as JSON has it: a string for a path, a list for a tuple, and a number for one of NumPy."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value.item() if isinstance(value, np.generic) else value
