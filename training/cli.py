"""Command lines: flags that several scripts share, and error messages in one line."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path

from training import experiment
from training.changes import parse_change
from utils import data, distributed
from utils.errors import Diverged, UserError

CONTINUES = "Interrupted. The same command continues after the last finished epoch."


class Parser(argparse.ArgumentParser):
    """A parser that prints the script's docstring unchanged, and an error in one line."""

    def __init__(self, about):
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def training_flags(about):
    """A parser with the flags of the training scripts. about: the script's docstring."""
    parser = Parser(about)
    add = parser.add_argument
    add("--save_path", required=True, type=Path, metavar="FOLDER", help="experiment folder with a params.json")
    add("--resume", metavar="FILE", help="start from the weights in this checkpoint")
    add("--evaluate", nargs="?", const="", metavar="FILE", help="evaluate FILE and do not train")
    add("--gpu_id", nargs="+", type=int, metavar="N", help="the GPU to use (default: 0); without a GPU the CPU is used")
    add_set_flag(parser, 'change keys; the run gets a folder of its own beside FOLDER, "FOLDER,KEY=VALUE"')
    add_data_flags(parser)
    return parser


def add_set_flag(parser, about):
    """Add the flag --set. about: its help."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=about)


def changed_keys(args):
    """{key: value} from the flag --set."""
    return dict(map(parse_change, args.set))


def add_data_flags(parser):
    """Add the flags --data_dir and --download."""
    parser.add_argument(
        "--data_dir", default=data.default_folder(), metavar="FOLDER", help="default: $DATA_DIR, or data"
    )
    parser.add_argument("--download", action="store_true", help="download the data set if it is missing")


def at_least(low, kind=int):
    """The type of a flag that takes a finite number of at least `low`."""

    def number(text):
        if not low <= kind(text) < 2**63:
            limit = "below 2^63" if kind(text) >= low else f"at least {low:d}"
            raise argparse.ArgumentTypeError(f"must be {limit}, not {text}")
        return kind(text)

    number.__name__ = kind.__name__  # argparse writes it into error messages
    return number


def command_line():
    """The command that started this process, as typed in a shell."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def main(kind, args):
    """Run a training script: train or evaluate the experiment in `args.save_path`. kind: see `params.kind_of`."""
    with one_line_errors(CONTINUES):
        gpus = args.gpu_id or [None]
        if len(gpus) > 1:
            script = experiment.SCRIPTS[kind]
            torchrun = f"torchrun --nproc_per_node={len(gpus)} {script} --save_path {shlex.quote(str(args.save_path))}"
            raise UserError(f"--gpu_id takes one GPU. To train on several, use: {torchrun}")
        if args.evaluate is not None and args.set:
            raise UserError("--evaluate cannot be combined with --set")
        files = {"resume": args.resume, "teacher_resume": getattr(args, "teacher_resume", None)}
        folder, params = experiment.prepare(kind, args.save_path, changed_keys(args), files)
        if args.evaluate is None:
            experiment.train(folder, params, args.data_dir, gpus[0], args.download, command_line())
        else:
            experiment.score(args.evaluate or folder / "best_model.tar", params, args.data_dir, gpus[0], args.download)


@contextlib.contextmanager
def one_line_errors(interrupted="Interrupted."):
    """End the program with one line and an exit status: 2 for a user error, 1 for NaN, 130 for an interruption.

    interrupted: the line for an interruption. If the reader of the output closed the pipe, nothing is printed and the
    exit status is 141.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
    try:
        yield
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    finally:
        distributed.leave()
