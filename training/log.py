"""training.log: the log of a run. Its lock reserves the run folder for one process; only process 0 locks and writes."""

import contextlib
import fcntl
import logging
import sys
import traceback

from utils.distributed import RANK
from utils.errors import Busy, Diverged, UserError
from utils.paths import display_path


class Printer(logging.StreamHandler):
    """A handler that raises BrokenPipeError, which ends the program if the reader closed the pipe."""

    errors = BrokenPipeError

    def handleError(self, record):
        if isinstance(sys.exc_info()[1], self.errors):
            raise
        super().handleError(record)


class LogFile(Printer):
    """A handler that raises every error of writing."""

    errors = OSError


class TrainingLog:
    """The file training.log in `folder`. It is open while this process holds its lock."""

    def __init__(self, folder):
        self.folder, self.file = folder, None
        self.logger = logging.Logger(str(folder))

    def lock(self, create=True):
        """Lock the file until `close`. Returns whether this call locked it.

        create: whether to create the file if it is missing. Raises Busy if another process holds the lock.
        """
        path = self.folder / "training.log"
        if RANK > 0 or self.file or not (create or path.exists()):
            return False
        try:
            self.file = open(path, "a", encoding="utf-8")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self.busy() from None
        except OSError as error:
            raise UserError(f"{display_path(self.folder)}: cannot be written: {error.strerror}") from None
        return True

    def busy(self):
        """Release the lock, and return the error for a folder in which another process trains."""
        self.close()
        return Busy(f"{display_path(self.folder)}: another process is training here")

    def close(self):
        with contextlib.suppress(OSError):  # closing tries again to write text that could not be written
            if self.file:
                self.file.close()
        self.file = None

    @contextlib.contextmanager
    def recording(self, append):
        """Inside this context, `log` writes to the locked file and to standard output, and errors are logged.

        append: whether to keep the present content of the file. OSError is raised again as UserError.
        """
        try:
            if self.file and not append:
                self.file.truncate(0)
            if self.file:
                to_file = LogFile(self.file)
                to_file.setFormatter(logging.Formatter("%(asctime)s:%(levelname)s: %(message)s"))
                self.logger.addHandler(to_file)
                self.logger.addHandler(Printer(sys.stdout))
            yield
        except BrokenPipeError:  # the reader closed the pipe
            raise
        except (Diverged, UserError) as error:
            self.write(f"{error}\n")
            raise
        except OSError as error:  # for example a full disk
            problem = f"{display_path(error.filename or self.folder)}: {error.strerror}"
            self.write(f"{problem}\n")
            raise UserError(problem) from None
        except Exception:
            self.write(traceback.format_exc())
            raise

    def log(self, message):
        """Log a line with the time."""
        self.logger.info(message)

    def write(self, text):
        """Write `text` to the file and not to standard output. Errors are ignored."""
        with contextlib.suppress(OSError):  # the disk may be full
            if self.file:
                self.file.write(text)
                self.file.flush()


def lines_of_epoch(train, scores, best_epoch, best_acc):
    """The lines on an epoch, in the wording of the released code. train, scores: {term: mean over images}."""
    loss, *others = format_terms(train)
    return [
        " ; ".join([f"- Train {loss.replace(':', ' :')}", *others]),
        f"- Eval metrics : {' ; '.join(format_terms(scores))}",
        f"- So far best epoch: {best_epoch}, best acc: {best_acc:05.2f}",
    ]


def format_terms(terms):
    """["loss: 0.847", "acc: 70.17"]: accuracies with two decimals, other terms with three."""
    return [f"{name}: {value:{'05.2f' if name.startswith('acc') else '05.3f'}}" for name, value in terms.items()]
