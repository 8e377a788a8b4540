"""Time a training epoch of this project against the released code's pipeline, in one run, in alternation.

    python benchmarks/epoch.py                                          net, preresnet20 and resnet18
    python benchmarks/epoch.py resnet18 --kind normal nasty kd          other kinds of steps
    python benchmarks/epoch.py net --steps 0                            whole epochs
    python benchmarks/epoch.py net preresnet20 --together 1 2 4 8       several runs at once

Each line is the median of some rounds. A round is a few steps of ours, as many of the reference (reference.py), and
one pass over our loader alone; seconds per epoch are of 50,000 images. Needs an otherwise idle machine.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, together
from benchmarks.pipelines import KINDS, Ours, Part, load_data, now, seconds_per_image, seconds_to_load, settings
from benchmarks.reference import Reference
from utils import engine, environment
from utils.errors import UserError
from utils.experiment import add_data_flags, one_line_errors

EPOCH = 50_000  # images
COLUMNS = {
    "network": "network",
    "kind": "step",
    "images_per_second": "images/s",
    "reference_images_per_second": "reference",
    "epoch_seconds": "s/epoch",
    "reference_epoch_seconds": "reference",
    "ratio": "ratio",
    "loading_percent": "loading %",
    "peak_percent": "of peak %",
    "peak_tflops": "peak TFLOP/s",
    "memory_mib": "MiB",
    "warmup_seconds": "warm-up s",
}


def flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("network", nargs="*", default=["net", "preresnet20", "resnet18"], help="as in params.json")
    add("--kind", nargs="+", default=["normal"], choices=list(KINDS), help="training steps (default: normal)")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of ours (default: auto)")
    add("--batch_size", type=at_least(1), default=128, metavar="N", help="default: 128")
    add("--steps", type=at_least(0), default=30, metavar="N", help="timed in a round; 0: a whole epoch (default: 30)")
    add(
        "--warmup",
        type=at_least(1),
        default=10,
        metavar="N",
        help="steps before them, not timed; 8 use up prefetched batches (default: 10)",
    )
    add("--rounds", type=at_least(1), default=5, metavar="N", help="of which the median is taken (default: 5)")
    instead = parser.add_mutually_exclusive_group().add_argument
    instead("--together", nargs="+", type=at_least(1), metavar="N", help="instead: throughput of N runs at once")
    instead("--profile", type=Path, metavar="FILE", help="write a time table of our kernels")
    add("--output", type=Path, metavar="FILE", help="write everything measured as JSON")
    add("--images", type=at_least(1), default=EPOCH, metavar="N", help="random ones where CIFAR-10 is missing")
    add("--matrix", type=at_least(1), metavar="N", help="size of the product that measures the machine's peak")
    add_data_flags(parser)
    return parser


def at_least(low):
    def whole_number(text):
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, not {text}")
        return int(text)

    return whole_number


def compare(params, kind, dataset, device, args):
    """One line of the table as {column: value}, and the seconds per image of each round."""
    peak = machine.matmul_peak(device, params.precision, args.matrix)
    machine.reset_memory(device)
    ours, warmup = warmed_up(Ours, params, dataset, device, args)
    memory = machine.peak_memory(device)
    reference, reference_warmup = warmed_up(Reference, params, dataset, device, args)
    skipped = args.warmup if args.steps else 0
    rounds = {"ours": [], "reference": [], "loading": []}
    for _ in range(args.rounds):
        for name, pipeline in (("ours", ours), ("reference", reference)):
            steps = args.steps or len(pipeline.loader)
            rounds[name].append(seconds_per_image(pipeline, steps, skipped, device))
        rounds["loading"].append(seconds_to_load(ours.loader, device))
    if args.profile:
        part = Part(ours.loader, args.warmup, 0, device)
        title = f"{params.model_name}, {kind}, {params.precision}: {args.warmup} steps of {args.batch_size}"
        machine.write_profile(args.profile, title, device, lambda: ours.train(part))
    seconds, slow, loading = (median(rounds[name]) for name in ("ours", "reference", "loading"))
    flops = machine.step_flops(params.model_name, kind, dataset.spec)
    return {
        "network": params.model_name,
        "kind": kind,
        "precision": params.precision,
        "images_per_second": 1 / seconds,
        "reference_images_per_second": 1 / slow,
        "epoch_seconds": EPOCH * seconds,
        "reference_epoch_seconds": EPOCH * slow,
        "ratio": slow / seconds,
        "loading_percent": 100 * loading / seconds,
        "peak_percent": 100 * flops / seconds / peak,
        "peak_tflops": peak / 1e12,
        "step_gflop_per_image": flops / 1e9,
        "memory_mib": memory / 2**20,
        "warmup_seconds": warmup,
        "reference_warmup_seconds": reference_warmup,
        "rounds_seconds_per_image": rounds,
    }


def warmed_up(pipeline, params, dataset, device, args):
    """A new pipeline after `args.warmup` steps, and the seconds that both took."""
    start = now(device)
    built = pipeline(params, dataset, device)
    if args.warmup + args.steps > len(built.loader):
        raise UserError(f"--warmup and --steps: an epoch has only {len(built.loader)} steps")
    built.train(Part(built.loader, args.warmup, 0, device))
    return built, now(device) - start


def at_once(params, kind, dataset, device, args):
    """{column: value} of `args.together`, one line each."""
    for count in args.together:
        steps = args.steps or len(dataset.train_loader(params.batch_size))
        rate = together.throughput(count, params, args.data_dir, args.images, steps, args.warmup)
        yield {"network": params.model_name, "kind": kind, "runs": count, "total_images_per_second": rate}


def main(argv=None):
    args = flags().parse_args(argv)
    with one_line_errors():
        for path in filter(None, (args.output, args.profile)):
            if not path.parent.is_dir() or path.is_dir():
                raise UserError(f"{path}: must be a file in a folder that exists")
        device = engine.pick_device()
        precision = engine.resolve_precision(args.precision, device)
        jobs = [(settings(name, kind, args.batch_size, precision), kind) for name in args.network for kind in args.kind]
        dataset = load_data(args.data_dir, device, args.images)
        about = {
            "date": time.strftime("%Y-%m-%d %H:%M %z"),
            "environment": environment.describe(device, precision),
            "processor": machine.processor(),
            "data": dataset.summary,
            "args": {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()},
        }
        print(f"{about['environment']}; {about['processor']}\nData: {dataset.summary}")
        if args.profile:
            args.profile.write_text(f"{about['environment']}\n\n", encoding="utf-8")
        if args.together:
            lines = [line for params, kind in jobs for line in at_once(params, kind, dataset, device, args)]
            headers = {name: name.replace("_", " ") for name in lines[0]}
        else:
            lines = [compare(params, kind, dataset, device, args) for params, kind in jobs]
            headers = COLUMNS
        print(tabulate([[line[name] for name in headers] for line in lines], list(headers.values()), floatfmt=".4g"))
        if args.output:
            args.output.write_text(json.dumps(about | {"results": lines}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
