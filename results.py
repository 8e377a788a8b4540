"""Print accuracies as a table: the papers' numbers, the records of this repository, and the runs on this machine.

    python results.py table1                             a table of experiments/tables.json
    python results.py experiments/digits                 every experiment below a folder (default: experiments)
    python results.py table1 --format latex              other formats: markdown, csv, json
    python results.py table1_digits --publish            turn finished runs on this machine into records
    python results.py experiments/digits/baseline/cnn --export --name digits/normal      weights for load_model
    python results.py benchmark_digits --format html --output leaderboard.html

A table shows the best epoch by test accuracy, as the papers do, and the last epoch. Over several seeds it shows mean ±
standard deviation.
"""

from pathlib import Path

from study.export import export
from study.formats import FORMATS
from study.publish import publish
from study.report import render
from study.targets import add_matrix_flags, selected
from training.cli import Parser, add_data_flags, add_set_flag, one_line_errors
from utils.errors import UserError
from utils.paths import write_file


def main():
    parser = Parser(__doc__)
    parser.add_argument("target", nargs="*", default=["experiments"], help="folders, or names in tables.json")
    parser.add_argument("--format", choices=(*FORMATS, "html"), default="text", help="html is for benchmarks only")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")
    parser.add_argument("--publish", action="store_true", help="write records of finished local runs to results/")
    parser.add_argument("--export", action="store_true", help="write a run's weights to model/weights/, with a card")
    parser.add_argument("--name", help="with --export: name for load_model (default: folder below experiments/)")
    add_data_flags(parser)
    add_matrix_flags(parser)
    add_set_flag(parser, "show the runs that reproduce.py makes with the same --set")
    args = parser.parse_args()
    with one_line_errors():
        if args.name and not (args.export and len(args.target) == 1):
            raise UserError("--name needs --export and one target")
        if args.export + args.publish + bool(args.output or args.format != "text") > 1:
            raise UserError("use only one of --export, --publish, and --format with --output")
        if args.export and (args.set or args.rows or args.columns):
            raise UserError("--export takes a run folder, and none of --set, --rows and --columns")
        if len(args.target) > 1 and (args.output or args.format in ("csv", "json")):
            raise UserError("--output and the formats csv and json take one target at a time")
        problems = []
        for target in args.target:
            if args.export:
                print(export(target, args.name, args.data_dir, args.download))
                continue
            if args.publish:
                report, refused = publish(target, **selected(args))
                print("\n".join(report))
                problems += refused
                continue
            text = render(target, args.format, args.output, **selected(args))
            if args.output:
                write_file(args.output, lambda file, text=text: file.write(f"{text}\n".encode()))
            else:
                print(text)
        if problems:
            raise UserError("\n".join(problems))


if __name__ == "__main__":
    main()
