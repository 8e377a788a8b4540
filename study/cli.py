"""Flags that reproduce.py, results.py and figures.py share."""

from training.changes import check_common
from training.cli import changed_keys


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
