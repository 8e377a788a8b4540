"""Run experiments with all that they depend on, then print their table.

    python reproduce.py experiments/digits                     a folder of experiments, or a single one
    python reproduce.py table1 --seeds 0 1 2 --jobs 4          a table or an ablation of the paper
    python reproduce.py table1 --dry_run                       only say what there is to run
    python reproduce.py table1 --set precision=bf16            with this key changed in all of them

What is finished is skipped, what was interrupted goes on where it was, what fails does not stop the rest.
Seed 0 runs in the experiment's own folder, seed 1 beside it in "experiment,seed=1"; changed keys likewise.
"""

import os
import sys

import torch

from utils.errors import UserError
from utils.executors import Local, Ray
from utils.experiment import Parser, add_data_flags, add_set_flag, changed_keys, one_line_errors
from utils.params import for_all_runs
from utils.plan import Plan
from utils.report import report
from utils.runner import Runner
from utils.tables import plan_target


def main():
    args = arguments()
    with one_line_errors():
        if args.jobs < 1:
            raise UserError(f"--jobs {args.jobs}: must be at least 1")
        plan, changes = Plan(), for_all_runs(changed_keys(args))
        for target in args.target:
            plan_target(target, plan, args.seeds, changes)
        runner = Runner(plan)
        if args.dry_run:
            sys.exit(print(runner.overview()))
        if args.ray is None:
            executor = Local(args.jobs, args.data_dir, args.download)
        else:
            executor = Ray(args.ray or None, args.jobs, args.data_dir, args.download)
        runner.run(executor)
        for target in args.target:
            print(f"\n{report(target, changes=changes, with_changed=False)}")
        for folder, state in runner.unfinished().items():
            print(f"{folder}: {state}", file=sys.stderr)
        sys.exit(1 if runner.unfinished() else 0)


def arguments():
    parser = Parser(__doc__)
    parser.add_argument("target", nargs="+", help="folders, or names in experiments/tables.json")
    parser.add_argument("--seeds", nargs="+", type=int, default=[None], metavar="N", help="run each with these seeds")
    jobs = torch.cuda.device_count() or os.cpu_count()
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help="at once; default: GPUs, or CPU cores")
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster, N jobs to a GPU")
    parser.add_argument("--dry_run", action="store_true", help="show the plan and stop")
    add_set_flag(parser, 'change keys in all experiments; each runs beside its folder, in "FOLDER,KEY=VALUE"')
    add_data_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
