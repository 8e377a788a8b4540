"""Compare the training speed of this project with that of the released code's pipeline.

    python benchmarks/epoch.py                                          net, preresnet20 and resnet18
    python benchmarks/epoch.py all --kind normal nasty kd               seven networks, three kinds of steps
    python benchmarks/epoch.py resnet18 --kind dafl dfad deepinversion  attacks without data, without a reference
    python benchmarks/epoch.py net --steps 0                            whole epochs
    python benchmarks/epoch.py net preresnet20 --together 1 2 4 8       several runs at once

Each line has the medians over rounds. A round consists of some steps of our pipeline (on a GPU nearly an epoch), some
steps of the reference (reference.py, in a separate process), and one pass over our loader without training. Seconds per
epoch are for 50,000 images. An iteration (it) is a training step. For dafl and dfad, an iteration is a step of the
generator and the following steps of the student. For deepinversion, it is one of the 2000 steps on the pixels of a
batch of images. Run this script on an otherwise idle machine.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from statistics import median

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, together
from benchmarks.pipelines import DATA_FREE, KINDS, Inverting, Ours, load_data, now, seconds_to_load, settings, timed
from benchmarks.reference import ReferenceProcess
from training import engine
from training.cli import add_data_flags, at_least, one_line_errors
from utils import environment
from utils.errors import UserError

EPOCH = 50_000  # number of images
NETWORKS = ["net", "preresnet20", "resnet18", "resnet50", "resnext29", "mobilenetv2", "shufflenetv2"]
STEPS = {"cpu": 30, "cuda": 380}  # steps of our pipeline in a round
REFERENCE_STEPS = {"cpu": 30, "cuda": 60}
CLOCK_WARMUP = 1.0  # seconds of work until an idle GPU reaches its full clock rate
COLUMNS = {
    "network": "network",
    "kind": "step",
    "batch_size": "batch",
    "iterations_per_second": "it/s",
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
    "recorded": "CUDA graph",
}


def flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("network", nargs="*", default=NETWORKS[:3], help=f"names as in params.json; all: {', '.join(NETWORKS)}")
    add("--kind", nargs="+", default=["normal"], choices=list(KINDS), help="training steps (default: normal)")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of our pipeline (default: auto)")
    add("--cuda_graph", action="store_true", help="run our pipeline with the key cuda_graph")
    add("--batch_size", type=at_least(1), metavar="N", help="default: 128; for attacks without data, the published one")
    add("--steps", type=at_least(0), metavar="N", help="timed steps per round; 0: an epoch (default: 30; 380 on a GPU)")
    add(
        "--reference_steps",
        type=at_least(0),
        metavar="N",
        help="steps of the reference (default: as ours; 60 on a GPU)",
    )
    add(
        "--warmup",
        type=at_least(1),
        default=10,
        metavar="N",
        help="steps before the timed steps (default: 10)",
    )
    add("--rounds", type=at_least(1), default=5, metavar="N", help="number of rounds for the median (default: 5)")
    add_exclusive = parser.add_mutually_exclusive_group().add_argument
    add_exclusive(
        "--together", nargs="+", type=at_least(1), metavar="N", help="only measure the throughput of N runs at once"
    )
    add_exclusive("--profile", type=Path, metavar="FILE", help="write the times of our kernels to this file")
    add("--output", type=Path, metavar="FILE", help="write all measurements as JSON")
    add("--images", type=at_least(1), default=EPOCH, metavar="N", help="number of random images if CIFAR-10 is missing")
    add("--matrix", type=at_least(1), metavar="N", help="size of the matrix product that measures the peak")
    add_data_flags(parser)
    return parser


def compare(params, kind, dataset, device, args):
    """One line of the table as {column: value}, including the seconds per image of each round.

    A column that does not apply to this kind of step has the value None.
    """
    peak = machine.matmul_peak(device, params.precision, args.matrix)
    machine.reset_memory(device)
    start = now(device)
    ours = (Inverting if kind == "deepinversion" else Ours)(params, dataset, device)
    if args.warmup + (args.steps or 1) > len(ours.loader):
        raise UserError(f"--warmup and --steps: an epoch has only {len(ours.loader)} steps")
    steps, reference_steps = steps_of_a_round(args, device)
    steps = min(steps, len(ours.loader) - args.warmup)
    timed(ours, args.warmup, 0, device)
    warmup, memory = now(device) - start, machine.peak_memory(device) / 2**20
    while device.type == "cuda" and now(device) - start < warmup + CLOCK_WARMUP:
        timed(ours, args.warmup, 0, device)
    skipped = args.warmup if steps else 0
    with contextlib.ExitStack() as stack:
        rounds = {"ours": []}
        if kind not in DATA_FREE:
            reference = stack.enter_context(ReferenceProcess(params, device, args.data_dir, args.images))
            reference.seconds_per_image(args.warmup, 0)
            rounds |= {"reference": [], "loading": []}
        for _ in range(args.rounds):
            part = timed(ours, steps or len(ours.loader), skipped, device)
            rounds["ours"].append(part.seconds_per_image)
            if kind not in DATA_FREE:
                rounds["reference"].append(reference.seconds_per_image(reference_steps, skipped))
                rounds["loading"].append(seconds_to_load(ours.loader, device))
    if args.profile:
        title = f"{params.model_name}, {kind}, {params.precision}: {args.warmup} steps of {params.batch_size}"
        machine.write_profile(args.profile, title, device, lambda: timed(ours, args.warmup, 0, device))
    medians = {name: median(seconds) for name, seconds in rounds.items()}
    line = {
        "network": params.model_name,
        "kind": kind,
        "precision": params.precision,
        "batch_size": params.batch_size,
        "iterations_per_second": part.steps / part.images / medians["ours"],
        "images_per_second": 1 / medians["ours"],
        "peak_tflops": peak / 1e12,
        "memory_mib": memory,
        "warmup_seconds": warmup,
        "recorded": ours.recorded,
        "rounds_seconds_per_image": rounds,
    }
    if kind not in DATA_FREE:
        flops = machine.step_flops(params.model_name, kind, dataset.spec)
        line |= against_reference(**medians) | {
            "peak_percent": 100 * flops / medians["ours"] / peak,
            "step_gflop_per_image": flops / 1e9,
        }
    return dict.fromkeys(COLUMNS) | line


def steps_of_a_round(args, device):
    """Steps of a round (ours, reference), from the flags or the default of the device. 0 means a whole epoch."""
    steps = STEPS[device.type] if args.steps is None else args.steps
    if args.reference_steps is not None:
        return steps, args.reference_steps
    return steps, (REFERENCE_STEPS[device.type] if args.steps is None else steps)


def against_reference(ours, reference, loading):
    """The columns that are computed from the seconds per image of both pipelines and of our loader alone."""
    return {
        "reference_images_per_second": 1 / reference,
        "epoch_seconds": EPOCH * ours,
        "reference_epoch_seconds": EPOCH * reference,
        "ratio": reference / ours,
        "loading_percent": 100 * loading / ours,
    }


def at_once(params, kind, dataset, device, args):
    """Yield one line of the table as {column: value} for each number of runs in `args.together`."""
    for count in args.together:
        steps = steps_of_a_round(args, device)[0] or len(dataset.train_loader(params.batch_size))
        rate = together.throughput(count, params, args.data_dir, args.images, steps, args.warmup)
        yield {"network": params.model_name, "kind": kind, "runs": count, "total_images_per_second": rate}


def main(argv=None):
    args = flags().parse_args(argv)
    with one_line_errors():
        for path in filter(None, (args.output, args.profile)):
            if not path.parent.is_dir() or path.is_dir():
                raise UserError(f"{path}: must be a file in an existing folder")
        device = engine.pick_device()
        precision = engine.resolve_precision(args.precision, device)
        args.network = NETWORKS if args.network == ["all"] else args.network
        common = args.batch_size, precision, args.cuda_graph
        jobs = [(settings(name, kind, *common), kind) for name in args.network for kind in args.kind]
        if args.together and "deepinversion" in args.kind:
            raise UserError("--together: cannot be combined with deepinversion, whose steps train pixels")
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
