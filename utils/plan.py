"""Which experiments a target needs, in which order: the `*_resume` keys of their params.json are the graph."""

import json
import os
import re
from pathlib import Path

from utils import checkpoint, params
from utils.checkpoint import ROOT
from utils.errors import UserError


class Plan:
    """Experiments, each after those it depends on: `raws` is {folder: what its params.json says}.

    Folders are strings relative to the project root. Those of sweeps and seeds are made when they run.
    """

    def __init__(self):
        self.raws = {}

    def add(self, folder, changes=None, teacher_changes=None, everywhere=None):
        """Add the experiment `folder` after all that it depends on; the folder in which its run will lie.

        changes: {key: value} for this experiment, teacher_changes: for those it depends on directly, everywhere: for
        it and all that it depends on. UserError: there is no such experiment, or it depends on itself.
        """
        return self._add(folder, changes or {}, teacher_changes or {}, everywhere or {}, ())[0]

    def _add(self, folder, changes, teacher_changes, everywhere, above):
        if folder in above:
            raise UserError("these experiments wait for each other: " + " -> ".join([*above, folder]))
        raw = params.read(ROOT / folder / "params.json")
        own = params.news(raw, everywhere | changes)
        raw, tags = params.changed(raw, own), dict(own)
        for name in resumes(raw):
            source, file = folder_of(raw[name]), Path(raw[name]).name
            if (ROOT / source / "params.json").is_file():
                made_in, its_tags = self._add(source, teacher_changes, {}, everywhere, (*above, folder))
                if made_in != source:
                    raw[name] = f"{made_in}/{file}"
                tags |= {f"teacher.{tag}": value for tag, value in its_tags.items() if own.get(tag) != value}
            elif not (ROOT / raw[name]).is_file():
                raise UserError(f'{folder}/params.json: "{name}": {source} is no experiment, it has no params.json')
        params.check(raw, ROOT / folder / "params.json")
        path = str(derived_path(folder, tags))
        self.raws.setdefault(path, raw)
        return path, tags

    def dependencies(self, folder):
        """The planned experiments that `folder` waits for."""
        raw = self.raws[folder]
        return {folder_of(raw[name]) for name in resumes(raw)} & self.raws.keys()

    def conflict(self, folder):
        """Why the results in `folder` are not those of the planned run, in one line; None where they may be."""
        file, last = ROOT / folder / "params.json", ROOT / folder / "last_model.tar"
        wanted = vars(params.check(self.raws[folder], file))
        try:
            lines = params.differences(vars(params.load(file.parent)), wanted) if file.exists() else []
        except UserError as error:
            return str(error)
        ran = checkpoint.peek(last).get("params") if last.exists() and not lines else None
        if ran:
            if wanted["precision"] == "auto":  # what it stood for is in the checkpoint
                wanted["precision"] = ran.get("precision", "fp32")
            lines = params.differences_to_run(ran, wanted)
        return f"holds a run with other parameters: {'; '.join(lines)}" if lines else None

    def write(self, folder):
        """Make sure that `folder` exists and holds its params.json. UserError where it holds another."""
        write_params(ROOT / folder, self.raws[folder])


def run_folder(experiment, changes):
    """The folder in which an experiment runs with `changes` in it and in all that it depends on."""
    return Plan().add(experiment, everywhere=changes) if changes else experiment


def resumes(raw):
    """The keys of a raw params.json that name a checkpoint."""
    return [name for name in raw if name.endswith("resume") and isinstance(raw[name], str)]


def folder_of(file):
    """The folder of a checkpoint that a key names, as a plan calls it."""
    return checkpoint.shown(os.path.realpath(checkpoint.locate(file).parent))


def derived_path(folder, changes):
    """`folder`,key=value,… for a run of the same experiment with some keys changed, spelt so that shells accept it."""
    folder = Path(folder) if Path(folder).name not in ("", "..") else Path(folder).resolve()
    spelt = [f"{name}={re.sub('[^A-Za-z0-9._+-]+', '-', str(value)).strip('-')}" for name, value in changes.items()]
    return folder.with_name(",".join([folder.name, *sorted(spelt)]))


def write_params(folder, raw):
    """Write `raw` as the params.json of `folder`. UserError where there is another one, or it cannot be written."""
    path, wanted = Path(folder) / "params.json", params.check(raw, Path(folder) / "params.json")
    if path.exists():
        there = params.load(folder)
        lines = params.differences(vars(there), vars(wanted))
        if lines:
            raise UserError(f"{path}: is there already and says something else:\n  " + "\n  ".join(lines))
        if there.num_epochs == wanted.num_epochs:
            return
    try:
        path.parent.mkdir(exist_ok=True, parents=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    checkpoint.replace(path, lambda file: file.write(f"{json.dumps(raw, indent=4)}\n".encode()))


def located(target):
    """The folder that a word on the command line means: from here where experiments lie in it, else from the root."""
    return Path(target).absolute() if any(Path(target).rglob("params.json")) else ROOT / target


def is_derived(folder):
    """Whether a folder is called "experiment,key=value"."""
    return "=" in Path(folder).name.partition(",")[2]


def experiments_below(folder, with_runs=False):
    """The experiments in `folder`, itself or below, as strings relative to the root.

    with_runs: also those with changed keys or seeds, "experiment,key=value"; of `folder` itself they lie beside it.
    """
    folder = located(folder).resolve()
    found = sorted(path.parent for path in folder.rglob("params.json"))
    found = [path for path in found if with_runs or path == folder or not is_derived(path)]
    if with_runs and found[:1] == [folder]:
        beside = (path.parent for path in folder.parent.glob("*/params.json"))
        found += sorted(path for path in beside if is_derived(path) and path.name.startswith(f"{folder.name},"))
    if not found:
        raise UserError(f"{folder}: there is no experiment here, that is, no folder with a params.json")
    return [str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path) for path in found]


def epochs_done(folder):
    """How many epochs the run in `folder` has behind it; with a best_model.tar alone, from elsewhere say, infinite."""
    last, best = ROOT / folder / "last_model.tar", ROOT / folder / "best_model.tar"
    if not last.exists():
        return float("inf") if best.exists() else 0
    state = checkpoint.peek(last)
    if not {"epoch", "best"} <= state.keys():
        return 0  # the run itself will say what is wrong with it
    return state["epoch"] - checkpoint.best_is_behind(state, best)


def epochs_logged(folder):
    """How many epochs the metrics.jsonl of the run in `folder` tells of."""
    path = ROOT / folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def time_logged(folder):
    """When the metrics.jsonl of the run in `folder` was last written, or None."""
    path = ROOT / folder / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else None
