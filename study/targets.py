"""The targets of commands: a folder of experiments, or a name in experiments/tables.json."""

from pathlib import Path

from study.tables import NO_MATRIX, load_table, read_target
from training import spec
from training.changes import check_common
from training.cli import changed_keys
from utils.errors import UserError
from utils.paths import display_path, from_root


def add_matrix_flags(parser):
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="for a matrix: only these defences; may be new files")
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME", help="for a matrix: only these attacks; may be new files"
    )


def selected(args):
    """The arguments `common`, `rows` and `columns` of `tables.load_table`, from the flags."""
    changes = changed_keys(args)
    new = args.rows or args.columns
    return {"common": changes if new else check_common(changes), "rows": args.rows, "columns": args.columns}


def located(target):
    """The folder `target`, resolved against the working directory, then the project root."""
    return Path(target).absolute() if any(Path(target).rglob("params.json")) else from_root(target)


def is_folder(target):
    """Whether a target is a folder. A folder takes precedence over a table of the same name."""
    return located(target).is_dir()


def experiments_below(folder):
    """The experiments in `folder` and below, as specs name them. Runs with changed keys are not experiments."""
    return [spec.canonical_folder(path) for path in folders_below(folder) if spec.is_definition(path)]


def folders_below(folder):
    """All folders with a params.json in `folder` and below. Raises UserError if there is none."""
    folder = located(folder).resolve()
    found = sorted(path.parent for path in folder.rglob("params.json"))
    if not found:
        raise UserError(f"{display_path(folder)}: contains no experiment, that is, no folder with a params.json")
    return found


def is_benchmark(target):
    return not is_folder(target) and "presets" in read_target(target)


def specs_of(target, common=None, rows=None, columns=None):
    """The specs of a target, each with its own seed. Arguments as those of `load_table`."""
    if not is_folder(target):
        return [cell.spec for cell in load_table(target, common, rows, columns).cells()]
    if rows or columns:
        raise UserError(NO_MATRIX.format(target))
    experiments = experiments_below(target)
    if not experiments:  # the folder of a run with changed keys
        return [spec.of_folder(display_path(path)) for path in folders_below(target)]
    return [spec.make(experiment, common=common) for experiment in experiments]
