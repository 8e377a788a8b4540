"""A run folder: training.log, metrics.jsonl, best_model.tar and last_model.tar beside its params.json."""

import contextlib
import fcntl
import json
import logging
import platform
import subprocess
import sys
import traceback
from pathlib import Path

import torch
import torchvision

from utils import checkpoint
from utils.errors import UserError
from utils.params import differences


class Run:
    """The files of one run. It refuses to go on with the results of another, or beside another process."""

    def __init__(self, folder, params):
        self.folder, self.params = Path(folder), vars(params)
        self.last, self.best = self.folder / "last_model.tar", self.folder / "best_model.tar"
        self.metrics = self.folder / "metrics.jsonl"
        self.state = self.previous()
        self.best_epoch, self.best_acc = self.state.get("best", (-1, -1.0))

    def previous(self):
        """The content of last_model.tar, or {}. UserError where it belongs to another run."""
        if not self.last.exists():
            if self.best.exists():
                raise UserError(
                    f"{checkpoint.shown(self.folder)}: holds a best_model.tar, but no last_model.tar to go on "
                    "from; move best_model.tar away to train anew"
                )
            return {}
        state = checkpoint.read(self.last)
        if not {"params", "optim_dict", "epoch", "best"} <= state.keys():
            raise UserError(
                f"{checkpoint.shown(self.last)}: not written by this project's scripts, so a run cannot go on from "
                "it; move it away to train anew, or start from its weights in another folder with --resume"
            )
        lines = differences(state["params"], self.params)
        if lines:
            raise UserError(
                f"{checkpoint.shown(self.folder)}: holds the results of a run with other parameters; use another "
                "folder, or move its *.tar away:\n  " + "\n  ".join(lines)
            )
        return state

    @contextlib.contextmanager
    def opened(self, environment):
        """The folder's log is open, and the folder locked, inside this context. environment: one line, logged."""
        try:
            file = open(self.folder / "training.log", "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{checkpoint.shown(self.folder)}: cannot be written: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{checkpoint.shown(self.folder)}: another process is training here") from None
            if not self.state:
                file.truncate(0)
            self.logger = logging.Logger(str(self.folder))
            in_file = logging.StreamHandler(file)
            in_file.setFormatter(logging.Formatter("%(asctime)s:%(levelname)s: %(message)s"))
            self.logger.addHandler(in_file)
            self.logger.addHandler(logging.StreamHandler(sys.stdout))
            self.environment = environment
            self.log(f"Environment: {environment}")
            try:
                yield
            except Exception:
                in_file.stream.write(traceback.format_exc())
                raise

    def log(self, message):
        self.logger.info(message)

    @property
    def epoch(self):
        """How many epochs are done."""
        return self.state.get("epoch", 0)

    @property
    def finished(self):
        return self.epoch >= self.params["num_epochs"]

    def restore(self, method, optimizer):
        """Bring `method` and `optimizer` to where the run stands; the number of epochs done."""
        if self.state:
            self.check_origins(method.zoo.origins)
            method.model.load_state_dict(self.state["state_dict"])
            optimizer.load_state_dict(self.state["optim_dict"])
            for name, item in method.extra().items():
                item.load_state_dict(self.state["extra"][name])
            self.log(f"Continuing after epoch {self.epoch}/{self.params['num_epochs']}")
        if self.metrics.exists():  # a kill may have left it one epoch ahead of the checkpoint
            lines = self.metrics.read_text().splitlines(keepends=True)
            self.metrics.write_text("".join(lines[: self.epoch]))
        return self.epoch

    def check_origins(self, origins):
        changed = [path for path, digest in origins.items() if self.state["origins"].get(path, digest) != digest]
        if changed:
            raise UserError(
                f"{checkpoint.shown(self.folder)}: began with other weights than {changed[0]} now holds; "
                "move its *.tar away to train anew"
            )

    def end_epoch(self, method, optimizer, record):
        """Log the epoch and save it: metrics first, last_model.tar last, since a run goes on from that."""
        epoch, test = record["epoch"], record["test"]
        if test["acc"] >= self.best_acc:
            self.best_epoch, self.best_acc = epoch - 1, test["acc"]
        loss, *others = shown_terms(record["train"])
        self.log(" ; ".join([f"- Train {loss.replace(':', ' :')}", *others]))
        self.log(f"- Eval metrics : {' ; '.join(shown_terms(test))}")
        self.log(f"- So far best epoch: {self.best_epoch}, best acc: {self.best_acc:05.2f}")
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        content = {
            "epoch": epoch,
            "state_dict": method.model.state_dict(),
            "optim_dict": optimizer.state_dict(),
            "extra": {name: item.state_dict() for name, item in method.extra().items()},
            "params": self.params,
            "best": (self.best_epoch, self.best_acc),
            "origins": method.zoo.origins,
            "environment": self.environment,
        }
        if self.best_epoch == epoch - 1:
            checkpoint.save(self.best, content)
        checkpoint.save(self.last, content)
        self.state = content


def shown_terms(terms):
    """["loss: 0.847", "acc: 70.17"]: losses with three decimals, percentages with two."""
    return [f"{name}: {value:{'05.2f' if name.startswith('acc') else '05.3f'}}" for name, value in terms.items()]


def environment(device, precision):
    """One line on what a run was computed with: its numbers are the same only where this line is."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=checkpoint.ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{versions}, {where}{threads}, {precision}, commit {commit or 'unknown'}"
