"""The benchmark from Python, in this process."""

import contextlib
import os

from study.benchmark import Benchmark
from study.executors import InProcess
from study.launch import execute_with
from study.own_teacher import import_teacher
from study.scoring import make_cards
from utils import data
from utils.errors import UserError


def run(benchmark, teacher=None, network=None, rows=None, presets=None, data_dir=None, **replacements):
    """Run a benchmark of experiments/tables.json. Returns its cards, a list of dictionaries; see docs/benchmark.md.

    teacher, network: a checkpoint to attack, and its network; see `import_teacher`. rows, presets: names of defences
    and of threat presets; default: all. replacements: values that replace `attacks` (names), `draws`, `seeds` or
    `changes` (keys of all runs) of the benchmark; its cards then have a flag, because they cannot be compared with
    others. data_dir: the folder of the data sets; default: $DATA_DIR, or data. No card is written to a file. Raises
    UserError for an unknown name, and if a run fails.
    """
    if network and not teacher:
        raise UserError("network needs a teacher")
    data_dir = data_dir or data.default_folder()
    own = import_teacher(benchmark, teacher, network, data_dir) if teacher else None
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        runs = Benchmark(benchmark, execute_with(InProcess(data_dir)), rows, presets, own, replacements)
        runs.run()
    return make_cards(runs)
