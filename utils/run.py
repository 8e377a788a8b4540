"""A run folder: training.log, metrics.jsonl, best_model.tar and last_model.tar beside its params.json."""

import contextlib
import fcntl
import json
import logging
import sys
import traceback
from pathlib import Path

from utils import checkpoint
from utils.distributed import RANK
from utils.errors import Diverged, UserError
from utils.params import differences_to_run


class Printer(logging.StreamHandler):
    """Ends the program where no one reads what it prints any more."""

    def handleError(self, record):
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


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
        state = checkpoint.read(self.last, "move it away to train anew")
        if not {"params", "optim_dict", "epoch", "best"} <= state.keys():
            raise UserError(
                f"{checkpoint.shown(self.last)}: not written by this project's scripts, so a run cannot go on from "
                "it; move it away to train anew, or start from its weights in another folder with --resume"
            )
        lines = differences_to_run(state["params"], self.params)
        if lines:
            raise UserError(
                f"{checkpoint.shown(self.folder)}: holds the results of a run with other parameters; use another "
                "folder, or move its *.tar away:\n  " + "\n  ".join(lines)
            )
        if RANK == 0 and checkpoint.best_is_behind(state, self.best):
            checkpoint.save(self.best, state)  # a kill came between the two
        return state

    @contextlib.contextmanager
    def opened(self, environment):
        """The log is open and the folder locked inside this context. Of several processes the first alone writes."""
        self.environment = environment
        self.logger = logging.Logger(str(self.folder))
        with self.locked_log() if RANK == 0 else contextlib.nullcontext() as file:
            if file:
                in_file = logging.StreamHandler(file)
                in_file.setFormatter(logging.Formatter("%(asctime)s:%(levelname)s: %(message)s"))
                self.logger.addHandler(in_file)
                self.logger.addHandler(Printer(sys.stdout))
            self.log(f"Environment: {environment}")
            try:
                yield
            except (Diverged, UserError) as error:
                if file:
                    file.write(f"{error}\n")
                raise
            except BrokenPipeError:  # who reads our output has enough of it
                raise
            except Exception:
                if file:
                    traceback.print_exc(file=file)
                raise

    def locked_log(self):
        """training.log, opened for appending, or anew where there is no checkpoint to go on from."""
        try:
            file = open(self.folder / "training.log", "a", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{checkpoint.shown(self.folder)}: another process is training here") from None
        except OSError as error:
            raise UserError(f"{checkpoint.shown(self.folder)}: cannot be written: {error.strerror}") from None
        if not self.state:
            file.truncate(0)
        return file

    def log(self, message):
        self.logger.info(message)

    @property
    def epoch(self):
        """How many epochs are done."""
        return self.state.get("epoch", 0)

    @property
    def finished(self):
        return self.epoch >= self.params["num_epochs"]

    def say_finished(self):
        if RANK == 0:
            best = f"best acc: {self.best_acc:.2f}, epoch {self.best_epoch}"
            print(f"{checkpoint.shown(self.folder)}: finished, {best}")

    def fallback(self):
        """Where to go on from after a run has failed."""
        if not self.epoch:
            return "No epoch had ended before, so there is no checkpoint."
        return f"The last good checkpoint is {checkpoint.shown(self.last)}, after epoch {self.epoch}."

    def restore(self, method, optimizer):
        """Bring `method` and `optimizer` to where the run stands; the number of epochs done."""
        if self.state:
            method.model.load_state_dict(self.state["state_dict"])
            optimizer.load_state_dict(self.state["optim_dict"])
            for name, item in method.extra().items():
                item.load_state_dict(self.state["extra"][name])
            self.log(f"Continuing after epoch {self.epoch}/{self.params['num_epochs']}")
        if self.metrics.exists() and RANK == 0:  # a kill may have left it one epoch ahead of the checkpoint
            lines = self.metrics.read_bytes().splitlines(keepends=True)
            checkpoint.replace(self.metrics, lambda file: file.writelines(lines[: self.epoch]))
        self.state = {"epoch": self.epoch}  # the weights it held are in use now, or of no use
        return self.epoch

    def check_origins(self, origins):
        """UserError where a teacher's file has changed since the run began. origins: {path: fingerprint}."""
        if not self.state:
            return
        changed = [path for path, digest in origins.items() if self.state["origins"].get(path, digest) != digest]
        if changed:
            raise UserError(
                f"{checkpoint.shown(self.folder)}: began with other weights than {changed[0]} now holds; "
                "move its *.tar away to train anew"
            )

    def end_epoch(self, method, optimizer, record):
        """Log the epoch and save it: metrics first, then last_model.tar, from which a run goes on."""
        epoch, test = record["epoch"], record["test"]
        if test["acc"] >= self.best_acc:
            self.best_epoch, self.best_acc = epoch - 1, test["acc"]
        self.state["epoch"] = epoch
        if RANK > 0:
            return
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
        checkpoint.save(self.last, content)
        if self.best_epoch == epoch - 1:
            checkpoint.save(self.best, content)


def shown_terms(terms):
    """["loss: 0.847", "acc: 70.17"]: losses with three decimals, percentages with two."""
    return [f"{name}: {value:{'05.2f' if name.startswith('acc') else '05.3f'}}" for name, value in terms.items()]
