"""Run experiments with all that they depend on, then print their table.

    python reproduce.py experiments/digits                     a folder of experiments, or a single one
    python reproduce.py table1 --seeds 0 1 2 --jobs 4          a table or an ablation of the paper
    python reproduce.py table1 --dry_run                       only say what there is to run

What is finished is skipped, what was interrupted goes on where it was, what fails does not stop the rest.
Seed 0 runs in the experiment's own folder, seed 1 beside it in "experiment,seed=1".
"""

import argparse
import os
import sys

import torch

from utils.errors import UserError
from utils.experiment import add_data_flags, one_line_errors
from utils.plan import Plan
from utils.report import report
from utils.runner import Runner
from utils.tables import plan_target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="+", help="folders, or names in experiments/tables.json")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="run each experiment with these seeds")
    parser.add_argument("--jobs", type=int, metavar="N", help="run N at once (default: 1 a GPU; without, 1 a CPU core)")
    parser.add_argument("--dry_run", action="store_true", help="show the plan and stop")
    add_data_flags(parser)
    args = parser.parse_args()
    with one_line_errors():
        jobs = args.jobs if args.jobs is not None else torch.cuda.device_count() or os.cpu_count()
        if jobs < 1:
            raise UserError(f"--jobs {args.jobs}: must be at least 1")
        plan = Plan()
        for target in args.target:
            plan_target(target, args.seeds or [None], plan)
        runner = Runner(plan, jobs, args.data_dir, args.download)
        if args.dry_run:
            print(runner.overview())
            return
        finished = runner.run()
        for target in args.target:
            print(f"\n{report(target)}")
        for folder, reason in runner.failed().items():
            print(f"{folder}: {reason}", file=sys.stderr)
    sys.exit(0 if finished else 1)


if __name__ == "__main__":
    main()
