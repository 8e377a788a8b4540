"""Time students of one teacher with and without stored answers.

    python benchmarks/answers.py                                        16 CNN students of a ResNet-18

Each student trains one epoch on the images of `--steps` batches. All students have different α. Without stored answers,
every student runs the teacher. With stored answers, the first student runs the teacher and writes the answers; all
others read them. The times are those of the training steps, including writing and reading, without evaluation. The
teacher has random weights. Run this script on an otherwise idle machine.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import model
from benchmarks import machine
from training import engine, experiment, params
from training.cli import add_data_flags, at_least, one_line_errors
from utils import checkpoint, data, environment

BATCH_SIZE, TRAINING_IMAGES = 128, 50_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--students", type=at_least(2), default=16, metavar="N", help="default: 16")
    add("--steps", type=at_least(1), default=30, metavar="N", help="training steps of a student (default: 30)")
    add("--teacher", default="resnet18", choices=model.names(), metavar="NETWORK", help="default: resnet18")
    add("--student", default="net", choices=model.names(), metavar="NETWORK", help="default: net")
    add("--output", type=Path, metavar="FILE", help="write the measurements as JSON")
    add_data_flags(parser)
    args = parser.parse_args()
    with one_line_errors():
        seconds = {gib: measure(args, gib) for gib in (0, 2)}  # gib: the value of the key stored_answers_gib
    plain, stored = sum(seconds[0]), sum(seconds[2])
    print(f"{args.students} students `{args.student}` of one `{args.teacher}`, {args.steps} steps each: {plain:.1f} s")
    print(f"with stored answers: {stored:.1f} s, {plain / stored:.2f} times as fast")
    if args.output:
        results = {"seconds": seconds[0], "seconds_with_stored_answers": seconds[2], "ratio": plain / stored}
        args.output.write_text(json.dumps(describe(args) | results, indent=1) + "\n")


def measure(args, gib):
    """A list of the seconds that the training steps of each student take. gib: the key stored_answers_gib."""
    load = functools.cache(data.load)
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, "teacher.tar")
        torch.manual_seed(0)
        checkpoint.save(teacher, {"state_dict": model.build(args.teacher, 10).state_dict()})
        return [train_student(args, Path(folder, str(i)), teacher, i, gib, load) for i in range(args.students)]


def train_student(args, folder, teacher, number, gib, load):
    raw = {"model_name": args.student, "dataset": "cifar10", "learning_rate": 0.001, "schedule": [], "gamma": 0.1}
    raw |= {"batch_size": BATCH_SIZE, "num_epochs": 1, "subset_percent": args.steps * BATCH_SIZE / TRAINING_IMAGES}
    raw |= {"teacher_model": args.teacher, "teacher_resume": str(teacher), "temperature": 4}
    raw |= {"alpha": (number + 1) / (args.students + 1), "precision": "auto", "stored_answers_gib": gib}
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(raw))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        experiment.train(folder, params.load(folder), args.data_dir, load=load)
    return json.loads((folder / "metrics.jsonl").read_text())["seconds"]


def describe(args):
    device = engine.pick_device()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "environment": environment.describe(device, engine.resolve_precision("auto", device)),
        "processor": machine.processor(),
        "args": {name: value for name, value in vars(args).items() if name not in ("output", "data_dir", "download")},
    }


if __name__ == "__main__":
    main()
