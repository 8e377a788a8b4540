"""The targets of commands: a folder of experiments, or a name in experiments/tables.json."""

from pathlib import Path

from study.forms import kind_of
from study.matrices import load_matrix
from study.tables import Cell, Table, read_target, row_of_sweep, row_of_table, with_seeds_of_teachers
from training import spec
from training.changes import check_common
from training.cli import changed_keys
from utils.errors import UserError
from utils.paths import display_path, from_root

NO_MATRIX = "--rows and --columns need a matrix; {} is not a matrix"


def add_matrix_flags(parser):
    """Add the flags --rows and --columns, which select a part of a matrix or of a benchmark."""
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these defences; may be new files")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="only these attacks; may be new files")


def selected(args):
    """The arguments `common`, `rows` and `columns` of `load_table`, as a dictionary, from the flags."""
    changes = changed_keys(args)
    if not (args.rows or args.columns):  # otherwise `load_matrix` checks the keys, because new files may declare some
        changes = check_common(changes)
    return {"common": changes, "rows": args.rows, "columns": args.columns}


def load_table(name, common=None, rows=None, columns=None):
    """The Table of the entry `name` of experiments/tables.json.

    common: {key: value} changed in all of its runs. rows, columns: for a matrix, names of its defences and attacks, or
    of new files in method/defend/ and method/attack/; default: all that it has. A key of `common` that a new file
    declares is changed only where this file is used. Raises UserError for an unknown name.
    """
    entry, common = read_target(name), common or {}
    kind = kind_of(entry)
    if kind == "benchmark":
        raise UserError(f"{name} is a benchmark, not a table")
    if kind == "matrix":
        return load_matrix(entry, common, rows, columns)
    if rows or columns:
        raise UserError(NO_MATRIX.format(name))
    make_row = row_of_sweep if kind == "sweep" else row_of_table
    headers = entry.get("columns") or [f"{entry['key']} {value}" for value in entry["values"]]
    named_rows = [(row["name"], make_row(row, entry, common)) for row in entry["rows"]]
    if "teacher_seed" in entry:
        named_rows = with_seeds_of_teachers(named_rows, entry["teacher_seed"])
    return Table(entry["title"], entry["source"], headers, named_rows, entry.get("conclusion", {}))


def load_table_to_print(name, common=None, rows=None, columns=None):
    """Like `load_table`, but if all selected rows (or columns) are new, those of the matrix are printed before them."""
    entry = read_target(name)
    if kind_of(entry) == "matrix" and not (rows and columns):
        rows, columns = add_new(entry["defences"], rows), add_new(entry["attacks"], columns)
    return load_table(name, common, rows, columns)


def add_new(present, names):
    """The rows or columns to print if `names` are selected: also those `present`, if `names` are all new."""
    return [*present, *names] if names and not set(names) & set(present) else names


def located(target):
    """The folder `target`, resolved against the working directory, then the project root."""
    return Path(target).absolute() if any(Path(target).rglob("params.json")) else from_root(target)


def is_folder(target):
    """Whether a target is a folder. A folder takes precedence over a table of the same name."""
    return located(target).is_dir()


def folders_below(folder):
    """All folders with a params.json in `folder` and below. Raises UserError if there is none."""
    folder = located(folder).resolve()
    folders = sorted(path.parent for path in folder.rglob("params.json"))
    if not folders:
        raise UserError(f"{display_path(folder)}: contains no experiment, that is, no folder with a params.json")
    return folders


def is_benchmark(target):
    """Whether a target is the name of a benchmark. Raises UserError if it is neither a folder nor a known name."""
    return not is_folder(target) and kind_of(read_target(target)) == "benchmark"


def specs_of(target, seed=None, common=None, rows=None, columns=None):
    """The specs of a target. seed: default: that of each definition. Other arguments: see `load_table`."""
    if not is_folder(target):
        return [cell.with_seed(seed) for cell in load_table(target, common, rows, columns).cells()]
    if rows or columns:
        raise UserError(NO_MATRIX.format(target))
    folders = folders_below(target)
    experiments = [folder for folder in folders if spec.is_definition(folder)]
    # If there are no experiments, the target is the folder of a run with changed keys.
    return [Cell(spec.make(folder, common=common)).with_seed(seed) for folder in experiments or folders]
