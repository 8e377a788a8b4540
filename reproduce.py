"""Run experiments and everything they depend on, then print their table.

    python reproduce.py table1_digits                          a table of experiments/tables.json
    python reproduce.py table1 --seeds 0 1 2 --jobs 4          three seeds, four runs at the same time
    python reproduce.py experiments/digits                     a folder of experiments, or a single experiment
    python reproduce.py table1 --dry_run                       only list the runs
    python reproduce.py table1 --set precision=bf16            change a key in all runs
    python reproduce.py matrix_digits --rows mine              add the row of method/defend/mine.py to a matrix
    python reproduce.py benchmark_digits --rows mine           benchmark this defence against attacks tuned to it
    python reproduce.py benchmark_digits --teacher mine.pt --model resnet18        benchmark your own trained teacher

Finished runs are skipped. Interrupted runs continue. A failed run does not stop the others. A run with seed 0 writes to
the folder of its experiment. A run with seed 1 writes to a folder beside it, "experiment,seed=1".
"""

import contextlib
import os
import sys

import torch

from study.benchmark import Benchmark
from study.cards import cards_path, show, write_cards
from study.executors import Processes, Ray
from study.launch import Plan, Runner, execute_with
from study.own_teacher import import_teacher
from study.report import report
from study.scoring import make_cards
from study.targets import add_matrix_flags, is_benchmark, selected, specs_of
from training.cli import CONTINUES, Parser, add_data_flags, add_set_flag, at_least, command_line, one_line_errors
from utils.errors import UserError
from utils.paths import display_path


def main():
    args = arguments()
    with one_line_errors(CONTINUES):
        selection = selected(args)
        if is_benchmark(args.target[0]):
            return run_benchmark(args)
        if args.teacher or args.model or args.presets:
            raise UserError(f"--presets, --teacher and --model need a benchmark; {args.target[0]} is not a benchmark")
        pairs = [(seed, target) for seed in args.seeds for target in args.target]
        runner = Runner(Plan(spec for seed, target in pairs for spec in specs_of(target, seed, **selection)))
        if args.dry_run:
            print(runner.overview())
            return
        with contextlib.closing(executor(args)) as workers:
            runner.run(workers)
        for target in args.target:
            print(f"\n{report(target, with_changed=False, **selection)}")
        for folder, state in runner.unfinished().items():
            print(f"{folder}: {state}", file=sys.stderr)
        sys.exit(1 if runner.unfinished() else 0)


def run_benchmark(args):
    if len(args.target) > 1 or args.seeds != [None] or args.set:
        raise UserError(f"{args.target[0]} is a benchmark: give no other target, and none of --seeds and --set")
    if args.model and not args.teacher:
        raise UserError("--model needs --teacher")
    own = None
    if args.teacher:
        own = import_teacher(args.target[0], args.teacher, args.model, args.data_dir, args.download)
        print(f"{own.name}: {own.accuracy:.2f} % of the test images", *own.flags, sep="; ")
    with contextlib.closing(executor(args)) as workers:
        replacements = {"attacks": args.columns} if args.columns else {}
        benchmark = Benchmark(args.target[0], execute_with(workers), args.rows, args.presets, own, replacements)
        if args.dry_run:
            print(benchmark.overview())
            return
        benchmark.run()
    cards = make_cards(benchmark)
    print(show(cards))
    write_cards(benchmark.name, cards, own)
    if own:
        print(f"Cards: {display_path(cards_path(benchmark.name, own))}")


def executor(args):
    more = args.data_dir, args.download, command_line()
    if args.ray is None:
        return Processes(args.jobs or torch.cuda.device_count() or os.cpu_count(), *more)
    return Ray(args.ray or None, args.jobs or 1, *more)


def arguments():
    parser = Parser(__doc__)
    parser.add_argument("target", nargs="+", help="folders, or names in experiments/tables.json")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[None], metavar="N", help="run each experiment with these seeds"
    )
    parser.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="number of runs at the same time (default: number of GPUs, or of cores); with --ray, per GPU (default: 1)",
    )
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and stop (a --teacher is copied)")
    add_matrix_flags(parser)
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="for a benchmark: use only these threat presets")
    parser.add_argument("--teacher", metavar="FILE", help="for a benchmark: attack the teacher in this checkpoint")
    parser.add_argument(
        "--model", metavar="NAME", help="network of --teacher: a name, module:function or file.py:function"
    )
    add_set_flag(parser, 'change keys in all runs, and write to folders "FOLDER,all.KEY=VALUE"')
    add_data_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
