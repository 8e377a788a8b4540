"""Plans: the runs that some specs need, each after the runs whose checkpoints it loads."""

from dataclasses import dataclass
from pathlib import Path

from training import params
from training.changes import differences, differences_to_run
from training.folder import best_is_outdated
from training.spec import Spec
from utils import checkpoint
from utils.errors import UserError
from utils.paths import from_root


@dataclass(frozen=True)
class Planned:
    spec: Spec
    raw: dict  # the content of its params.json
    needs: frozenset  # folders of the runs whose checkpoints it loads


class Plan:
    """runs: {folder: Planned}, in an order in which they can run. Folders are relative to the project root."""

    def __init__(self, specs=()):
        self.runs = {}
        for spec in specs:
            self.add(spec)

    def add(self, spec, above=()):
        """Add `spec` after all runs that it needs. Raises UserError if a run is invalid or needs itself."""
        folder = spec.folder
        if folder in self.runs:
            return
        if folder in above:
            raise UserError("circular dependency: " + " -> ".join([*above, folder]))
        raw, sources = spec.raw, spec.sources
        for name, path in raw.items():
            is_checkpoint = name.endswith("resume") and isinstance(path, str)
            if is_checkpoint and name not in sources and not from_root(path).is_file():
                raise UserError(f'{folder}/params.json: "{name}": {Path(path).parent} has no params.json')
        for source in sources.values():
            self.add(source, (*above, folder))
        params.check(raw, from_root(folder) / "params.json")
        self.runs[folder] = Planned(spec, raw, frozenset(source.folder for source in sources.values()))

    def conflict(self, folder):
        """One line that says why `folder` holds another run than the planned one, or None."""
        file, last = from_root(folder) / "params.json", from_root(folder) / "last_model.tar"
        wanted = vars(params.check(self.runs[folder].raw, file))
        try:
            lines = differences(vars(params.load(file.parent)), wanted) if file.exists() else []
        except UserError as error:
            return str(error)
        ran = checkpoint.peek(last).get("params") if last.exists() and not lines else None
        if ran:
            if wanted["precision"] == "auto":  # the checkpoint has the resolved value
                wanted["precision"] = ran.get("precision", "fp32")
            lines = differences_to_run(ran, wanted)
        return f"holds a run with other parameters: {'; '.join(lines)}" if lines else None


def is_scored(folder, raw, epochs):
    """Whether the run in `folder` has test.json, or needs none after `epochs` epochs."""
    due = raw.get("validation") and raw.get("test_at_end") and epochs == raw["num_epochs"]
    return not due or (from_root(folder) / "test.json").exists()


def epochs_done(folder):
    """The number of finished epochs of the run in `folder`; infinite if it holds only a best_model.tar."""
    last, best = from_root(folder) / "last_model.tar", from_root(folder) / "best_model.tar"
    if not last.exists():
        return float("inf") if best.exists() else 0
    state = checkpoint.peek(last)
    if not {"epoch", "best"} <= state.keys():
        return 0  # the run itself will report the problem
    return state["epoch"] - best_is_outdated(state, best)


def epochs_logged(folder):
    """The number of epochs in the metrics.jsonl of the run in `folder`."""
    path = from_root(folder) / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def time_logged(folder):
    """The time of the last write to the metrics.jsonl of the run in `folder`, in ns, or None."""
    path = from_root(folder) / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else None
