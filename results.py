"""Logged accuracies as a table, beside the paper's.

    python results.py experiments/digits                 every experiment below a folder (default: experiments)
    python results.py table1 --format latex              a table of the paper
    python results.py table1 --set precision=bf16        of the runs with this key changed

Shown are the best epoch (by test accuracy, as published) and the last; over several seeds, mean ± standard deviation.
"""

from utils.errors import UserError
from utils.experiment import Parser, add_set_flag, changed_keys, one_line_errors
from utils.params import for_all_runs
from utils.report import FORMATS, report


def main():
    parser = Parser(__doc__)
    parser.add_argument("target", nargs="*", default=["experiments"], help="folders, or names in tables.json")
    parser.add_argument("--format", choices=FORMATS, default="text")
    add_set_flag(parser, "the runs of reproduce.py with the same --set")
    args = parser.parse_args()
    with one_line_errors():
        if len(args.target) > 1 and args.format in ("csv", "json"):
            raise UserError(f"--format {args.format}: one target at a time")
        for target in args.target:
            print(report(target, args.format, for_all_runs(changed_keys(args)), with_changed=not args.set))


if __name__ == "__main__":
    main()
