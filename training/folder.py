"""A run folder: metrics.jsonl, best_model.tar, last_model.tar and training.log beside params.json.

A run with the keys validation and test_at_end also has test.json: the metrics of the best epoch on the test images.
"""

import contextlib
import json
from pathlib import Path

from training.changes import differences_to_run
from training.log import TrainingLog, format_terms, lines_of_epoch
from utils import checkpoint
from utils.data import OWN
from utils.digest import sealed
from utils.distributed import RANK
from utils.errors import UserError
from utils.paths import display_path, version, write_file


class Run:
    """The files of one run. Raises UserError for a folder with results of another run, or in use by another process.

    params: the checked parameters of the run. command: the command line that started the run, for the checkpoint.
    """

    def __init__(self, folder, params, command=""):
        self.folder, self.params, self.command = Path(folder), vars(params), command
        self.last, self.best = self.folder / "last_model.tar", self.folder / "best_model.tar"
        self.metrics_file, self.scores_file = self.folder / "metrics.jsonl", self.folder / "test.json"
        self.training_log = TrainingLog(self.folder)
        self.version = version(self.last)
        self.state = self.load_state()
        self.best_epoch, self.best_acc = self.state.get("best", (-1, -1.0))  # best_epoch counts from 0, as released

    def load_state(self):
        """The content of last_model.tar, or {} without one. Raises UserError if it belongs to another run."""
        if not self.last.exists():
            if self.best.exists():
                raise UserError(
                    f"{display_path(self.folder)}: holds a best_model.tar, but no last_model.tar to continue "
                    "from; move best_model.tar away to train from scratch"
                )
            return {}
        try:
            state = checkpoint.load(self.last)
        except checkpoint.CheckpointError as error:
            raise UserError(f"{error}; move it away to train from scratch") from None
        if not checkpoint.is_of_a_run(state):
            raise UserError(
                f"{display_path(self.last)}: not a checkpoint of this project, so the run cannot continue from it; "
                "move it away to train from scratch, or start from its weights in another folder with --resume"
            )
        lines = differences_to_run(state["params"], self.params)
        if lines:
            raise UserError(
                f"{display_path(self.folder)}: holds the results of a run with other parameters; use another "
                "folder, or move its *.tar files away:\n  " + "\n  ".join(lines)
            )
        if RANK == 0 and best_is_outdated(state, self.best):
            self.lock()
            checkpoint.save(self.best, state)  # the run was killed between the two writes
        return state

    def lock(self, create=True):
        """Reserve the folder for this process until `close`; see `TrainingLog.lock`.

        Raises Busy if another process is training here, or has done so since the state was loaded.
        """
        if self.training_log.lock(create) and version(self.last) != self.version:
            raise self.training_log.busy()

    def close(self):
        """Release the lock on the folder."""
        self.training_log.close()

    @contextlib.contextmanager
    def opened(self, environment):
        """Inside this context the folder is locked, and `log` writes to training.log.

        environment: one line that describes the software and the device; see `environment.describe`.
        """
        self.environment = environment
        self.lock()
        with self.training_log.recording(append=bool(self.state)):
            self.log(f"Environment: {environment}")
            yield

    def log(self, message):
        self.training_log.log(message)

    @property
    def epoch(self):
        """The number of finished epochs."""
        return self.state.get("epoch", 0)

    def finished(self, until):
        """Whether epoch `until` is finished, and test.json exists if the run needs one."""
        return self.epoch >= until and (not self.must_score or self.scores_file.exists())

    @property
    def must_score(self):
        """Whether the best epoch must be evaluated on the test images: at the end of a run with `test_at_end`."""
        wanted = self.params.get("validation") and self.params.get("test_at_end")
        return bool(wanted) and self.epoch >= self.params["num_epochs"]

    def print_finished(self):
        if RANK == 0:
            best = f"best acc: {self.best_acc:.2f}, epoch {self.best_epoch}"
            print(f"{display_path(self.folder)}: finished, {best}")

    def fallback(self):
        """A sentence for error messages: the checkpoint from which a failed run can continue."""
        if not self.epoch:
            return "There is no checkpoint, because no epoch had finished."
        return f"The last good checkpoint is {display_path(self.last)}, after epoch {self.epoch}."

    def restore(self, method, optimizer):
        """Load the state of the run into `method` and `optimizer`. Returns the number of finished epochs."""
        if self.state:
            checkpoint.load_weights(method.model, self.state, self.last)
            try:
                optimizer.load_state_dict(self.state["optim_dict"])
                for name, item in method.extra().items():
                    item.load_state_dict(self.state["extra"][name])
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                problem = f"its state does not fit this run: {error}".splitlines()[0]
                raise UserError(f"{display_path(self.last)}: {problem}; move it away to train from scratch") from None
            self.log(f"Continuing after epoch {self.epoch}/{self.params['num_epochs']}")
        if self.metrics_file.exists() and RANK == 0:  # a killed run may have logged one epoch more than it saved
            lines = self.metrics_file.read_bytes().splitlines(keepends=True)
            write_file(self.metrics_file, lambda file: file.writelines(lines[: self.epoch]))
        self.state = {"epoch": self.epoch}  # frees the memory of the weights
        return self.epoch

    def check_origins(self, origins):
        """Raise UserError if a teacher's file, or the user's own data, has changed since the run began.

        origins: see `Zoo`.
        """
        if not self.state:
            return
        before = self.state.get("origins", {})
        changed = [path for path, digest in origins.items() if before.get(path, digest) != digest]
        if changed:
            what = "the images of the data set" if changed[0] == OWN else f"the weights in {changed[0]}"
            raise UserError(
                f"{display_path(self.folder)}: {what} have changed since this run began; move its *.tar files away to "
                "train from scratch"
            )

    def end_epoch(self, method, optimizer, metrics):
        """Log and save an epoch: first metrics.jsonl, then last_model.tar, from which a run continues."""
        epoch, scores = metrics["epoch"], metrics.get("test") or metrics["validation"]
        if scores["acc"] >= self.best_acc:
            self.best_epoch, self.best_acc = epoch - 1, scores["acc"]
        self.state["epoch"] = epoch
        if RANK > 0:
            return
        self.scores_file.unlink(missing_ok=True)  # it exists if num_epochs was increased after the run had finished
        for line in lines_of_epoch(metrics["train"], scores, self.best_epoch, self.best_acc):
            self.log(line)
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(sealed(metrics)) + "\n")
        content = {
            "epoch": epoch,
            "state_dict": method.model.state_dict(),
            "optim_dict": optimizer.state_dict(),
            "extra": {name: item.state_dict() for name, item in method.extra().items()},
            "params": self.params,
            "best": (self.best_epoch, self.best_acc),
            "origins": method.zoo.origins,
            "environment": self.environment,
            "command": self.command,
        }
        data = checkpoint.packed(content)
        checkpoint.write(self.last, data)
        if self.best_epoch == epoch - 1:
            checkpoint.write(self.best, data)

    def score(self, method, loader):
        """Evaluate the weights of the best epoch on `loader`, and write test.json."""
        checkpoint.load_weights(method.model, checkpoint.load(self.best), self.best)
        scores = method.final(loader)
        self.log(f"- Test metrics of epoch {self.best_epoch}: {' ; '.join(format_terms(scores))}")
        if RANK == 0:
            content = json.dumps(sealed({"epoch": self.best_epoch + 1} | scores)) + "\n"
            write_file(self.scores_file, lambda file: file.write(content.encode()))


def best_is_outdated(last, best):
    """Whether `last`, the content of a last_model.tar, is the best epoch, but the file `best` has another epoch."""
    return last["best"][0] == last["epoch"] - 1 and checkpoint.peek(best).get("epoch") != last["epoch"]
