"""From a folder with a params.json to a trained network: what the three training scripts share."""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

import method
from model.zoo import Zoo
from utils import checkpoint, data, distributed, engine, environment
from utils import params as parameters
from utils.errors import Diverged, UserError
from utils.plan import derived_path, write_params
from utils.run import Run


class Parser(argparse.ArgumentParser):
    """A parser that prints the script's docstring as it is, and says what is wrong in one line."""

    def __init__(self, about):
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help shows what there is)\n")


def flags(about):
    """The flags of the training scripts, as a parser. about: the script's docstring."""
    parser = Parser(about)
    add = parser.add_argument
    add("--save_path", required=True, type=Path, metavar="FOLDER", help="with params.json; results land there")
    add("--resume", metavar="FILE", help="start from the weights in this checkpoint")
    add("--evaluate", nargs="?", const="", metavar="FILE", help="only score FILE (default: best_model.tar)")
    add("--gpu_id", type=int, metavar="N", help="the GPU to use (default: 0); without a GPU the CPU is used")
    add_set_flag(parser, 'change keys for a run in a folder of its own beside FOLDER, "FOLDER,KEY=VALUE"')
    add_data_flags(parser)
    return parser


def add_set_flag(parser, about):
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=about)


def changed_keys(args):
    """{key: value} that --set asks for."""
    return dict(map(parameters.parse_override, args.set))


def add_data_flags(parser):
    default = os.environ.get("DATA_DIR", "data")
    parser.add_argument("--data_dir", default=default, metavar="FOLDER", help="default: $DATA_DIR, or data")
    parser.add_argument("--download", action="store_true", help="fetch the data set where it is missing")


def at_least(low, kind=int):
    """The type of a flag that is a finite number."""

    def number(text):
        if not low <= kind(text) < 2**63:
            raise argparse.ArgumentTypeError(f"must be at least {low:d}, not {text}")
        return kind(text)

    number.__name__ = kind.__name__
    return number


def main(kind, args):
    """What a training script does: train the experiment in `args.save_path`, or score it, with one-line errors."""
    with one_line_errors():
        if args.evaluate is not None and args.set:
            raise UserError("--evaluate scores what there is; --set makes a run")
        folder, params = prepare(kind, args)
        if args.evaluate is None:
            train(folder, params, args.data_dir, args.gpu_id, args.download)
        else:
            evaluate(args.evaluate or folder / "best_model.tar", params, args)


@contextlib.contextmanager
def one_line_errors():
    """End the program with one line and an exit status: 2 for a mistake, 1 for NaN, 130 for an interruption."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on after the last finished epoch.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # who reads our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    finally:
        distributed.leave()


def prepare(kind, args):
    """(run folder, checked parameters) that the command line asks for."""
    folder = args.save_path
    if folder.name == "params.json" and folder.is_file():
        raise UserError(f"--save_path {folder}: must be the folder that it lies in, {folder.parent}")
    named = changed_keys(args)
    found = parameters.kind_in(folder / "params.json", named)
    if found != kind:
        script = parameters.SCRIPTS[found]
        raise UserError(f"{folder}: is an experiment for {script}: python {script} --save_path {folder}")
    changes = {"resume": args.resume, "teacher_resume": getattr(args, "teacher_resume", None)}
    changes = {name: checkpoint.shown(path) for name, path in changes.items() if path}
    if named:
        folder = derive(folder, named, changes)
    return folder, parameters.load(folder, changes)


def derive(folder, changes, unnamed):
    """The run folder beside `folder` for the same experiment with some keys changed; its params.json is written.

    unnamed: further changes, which the folder's name does not tell.
    """
    raw = parameters.changed(parameters.read(folder / "params.json"), changes | unnamed)
    parameters.check(raw, folder / "params.json")
    path = derived_path(folder, changes)
    write_params(path, raw)
    return path


def train(folder, params, data_dir, gpu_id=None, download=False):
    """Train the experiment `params` in `folder`, from where it stands to its end."""
    device = engine.pick_device(gpu_id)
    distributed.join(device)
    params.precision = engine.resolve_precision(params.precision, device)
    run = Run(folder, params)
    if run.finished:
        run.say_finished()
        return
    dataset = data.load(params.dataset, data_dir, device, params.subset_percent, download)
    engine.seed_everything(params.seed, epoch=-1)
    learner = method.find(params.method)(params, Zoo(dataset.spec, device, params.precision == "bf16"))
    learner.folder, learner.log = run.folder, run.log
    run.check_origins(learner.zoo.origins)
    share = distributed.RANK, distributed.WORLD_SIZE
    # A defence and its adversarial network share a seed. The role gives the defence another order of batches.
    role = 1 if method.kind(params.method) == "defend" else 0
    loader = dataset.train_loader(
        params.batch_size, params.augmentation, params.seed, *share, ahead=params.compile, role=role
    )
    with run.opened(environment.describe(device, params.precision)):
        run.log(f"Data: {dataset.summary}")
        engine.train(learner, loader, dataset.test_loader(), params, run)


def evaluate(path, params, args):
    """Print the test accuracy and loss of the network in the checkpoint `path`."""
    device = engine.pick_device(args.gpu_id)
    precision = engine.resolve_precision(params.precision, device)
    dataset = data.load(params.dataset, args.data_dir, device, download=args.download)
    network = Zoo(dataset.spec, device, precision == "bf16").frozen(params.model_name, Path(path).absolute())
    scores = engine.score(network, dataset.test_loader())
    print(f"{checkpoint.shown(path)}: acc: {scores['acc']:.2f} ; loss: {scores['loss']:.3f}")
