"""Functions that the three training scripts share: check params.json, train, and evaluate."""

import contextlib
import shlex
from pathlib import Path

import method
from method.attacker import Attack
from training import changes as key_changes
from training import engine, spec
from training import params as parameters
from training.answers import store_answers
from training.folder import Run
from training.zoo import Zoo
from utils import data, distributed, environment
from utils.epochs import seed_everything
from utils.errors import CheckpointError, UserError
from utils.keys import shorten
from utils.metrics import evaluate
from utils.paths import display_path, from_root, read_json

SCRIPTS = {"scratch": "train_scratch.py", "defend": "train_nasty.py", "attack": "train_kd.py"}


def prepare(kind, folder, changes, files):
    """Return (run folder, checked parameters) for a command line.

    kind: what the training script trains; see `params.kind_of`. changes: {key: value} of --set, for which a run folder
    is written beside `folder`. files: {"resume": path or None, …} from other flags, which replace keys.
    """
    if folder.name == "params.json" and folder.is_file():
        raise UserError(f"--save_path {folder}: must be a folder, not a file; use --save_path {folder.parent}")
    actual = kind_in(folder / "params.json", changes)
    if actual != kind:
        script = SCRIPTS[actual]
        raise UserError(f"{folder}: is an experiment for {script}: python {script} --save_path {folder}")
    files = {name: display_path(path) for name, path in files.items() if path}
    if changes:
        folder = derive(folder, changes | files)
    return folder, parameters.load(folder, files)


def kind_in(path, changes=()):
    """`params.kind_of` of the params.json `path` with `changes`."""
    raw = read_json(path)
    try:
        return parameters.kind_of(key_changes.apply(raw, dict(changes)))
    except UserError as error:
        raise UserError(f"{name_of_file(path, dict(changes))}: {error}") from None


def name_of_file(path, changes):
    """The params.json `path` and the changed keys of --set, for error messages."""
    changed = " ".join(f"{name}={key_changes.spell(value)}" for name, value in changes.items())
    return f"{display_path(path)} with --set {shorten(changed)}" if changed else display_path(path)


def derive(folder, changes):
    """Write the params.json of the run of the experiment `folder` with `changes`. Returns the folder of this run."""
    path = folder / "params.json"
    parameters.check(key_changes.apply(read_json(path), changes), name_of_file(path, changes))
    run = spec.make(folder.absolute(), changes)
    spec.write(run)
    return from_root(run.folder)


def train(folder, params, data_dir, gpu_id=None, download=False, command="", until=None, load=data.load):
    """Train the experiment `params` in `folder`, continuing after the last finished epoch.

    command: the command line that started the run, for the checkpoint. until: the epoch to stop after; default: the
    last one. load: the function that reads the data set; see `data.load`.
    """
    until = min(until or params.num_epochs, params.num_epochs)
    device = engine.pick_device(gpu_id)
    distributed.join(device)
    params.precision = engine.resolve_precision(params.precision, device)
    with contextlib.closing(Run(folder, params, command)) as run:
        if run.finished(until):
            run.print_finished()
            return
        run.lock(create=False)  # fails early, before the data set is read, if training.log exists and is locked
        train_run(run, params, device, data_dir, download, until, load)


def train_run(run, params, device, data_dir, download, until, load):
    """Train an unfinished Run on `device`. Other arguments: see `train`."""
    options = data.options_in(vars(params))
    dataset = load(params.dataset, data_dir, device, params.subset_percent, download, params.validation, **options)
    seed_everything(params.seed, epoch=-1)
    with suggest_command():
        learner = method.find(params.method)(params, Zoo(dataset.spec, device, params.precision == "bf16"))
    if dataset.digest:
        learner.zoo.origins[dataset.name] = dataset.digest
    run.check_origins(learner.zoo.origins)
    share = distributed.RANK, distributed.WORLD_SIZE
    # A defence gets its batches in another order than its adversarial network, because both begin with equal weights.
    # A student gets its batches in the order of its baseline, so that the two can be compared in pairs.
    role = 1 if method.kind(params.method) == "defend" else 0
    loader = dataset.train_loader(params.batch_size, params.augmentation, params.seed, *share, params.cuda_graph, role)
    with run.opened(environment.describe(device, params.precision)):
        run.log(f"Data: {dataset.summary}")
        if isinstance(learner, Attack) and distributed.WORLD_SIZE == 1:
            loader = store_answers(learner, loader, environment.versions(device, params.precision), run.log)
        part = "validation" if params.validation else "test"
        eval_loader = dataset.validation_loader() if params.validation else dataset.test_loader()
        engine.train(learner, loader, part, eval_loader, params, run, until)
        if run.must_score:
            run.score(learner, dataset.test_loader())


def score(path, params, data_dir, gpu_id=None, download=False):
    """Print the accuracy and loss on the test images of the network in the checkpoint `path`."""
    device = engine.pick_device(gpu_id)
    precision = engine.resolve_precision(params.precision, device)
    dataset = data.load(params.dataset, data_dir, device, download=download, **data.options_in(vars(params)))
    with suggest_command():
        network = Zoo(dataset.spec, device, precision == "bf16").frozen(params.model_name, Path(path).absolute())
    scores = evaluate(network, dataset.test_loader())
    print(f"{display_path(path)}: acc: {scores['acc']:.2f} ; loss: {scores['loss']:.3f}")


@contextlib.contextmanager
def suggest_command():
    """If a checkpoint is missing or damaged, add the command that makes it to the error message."""
    try:
        yield
    except CheckpointError as error:
        definition = error.path and Path(error.path).parent / "params.json"
        if not (definition and definition.is_file()):
            raise
        script = SCRIPTS[kind_in(definition)]
        folder = shlex.quote(display_path(definition.parent))
        raise UserError(f"{error}; make it with: python {script} --save_path {folder}") from None
