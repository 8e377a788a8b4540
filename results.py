"""Print accuracies as a table: the papers' numbers, the records of this repository, and runs on this machine.

    python results.py table1                             a table of experiments/tables.json
    python results.py experiments/digits                 every experiment below a folder (default: experiments)
    python results.py table1 --format latex              also markdown, csv, json
    python results.py table1_digits --publish            turn finished runs on this machine into records

Accuracies are those of the best epoch by test accuracy, as published, and of the last epoch; over several seeds, mean
± standard deviation.
"""

from study.cli import add_matrix_flags, selected
from study.formats import FORMATS
from study.publish import publish
from study.report import report
from training.cli import Parser, add_set_flag, one_line_errors
from utils.errors import UserError


def main():
    parser = Parser(__doc__)
    parser.add_argument("target", nargs="*", default=["experiments"], help="folders, or names in tables.json")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--publish", action="store_true", help="write finished local runs of the target to results/")
    add_matrix_flags(parser)
    add_set_flag(parser, "the runs of reproduce.py with the same --set")
    args = parser.parse_args()
    with one_line_errors():
        if len(args.target) > 1 and args.format in ("csv", "json"):
            raise UserError(f"--format {args.format}: one target at a time")
        for target in args.target:
            print(publish(target, **selected(args)) if args.publish else report(target, args.format, **selected(args)))


if __name__ == "__main__":
    main()
