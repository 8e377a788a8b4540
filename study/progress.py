"""Functions that read a run folder: finished epochs, metrics of each epoch, and scores on the test images."""

import json

from training.folder import best_is_outdated
from utils import checkpoint
from utils.digest import read_line, unsealed
from utils.errors import UserError
from utils.paths import display_path, from_root, read_json

SCORED = ("test", "validation")  # images on which a run is scored in every epoch
PARTS = ("train", *SCORED)  # items of a line of metrics.jsonl


def lacks_test_scores(folder, raw, epochs):
    """Whether the run in `folder` needs a test.json after `epochs` epochs, but has none."""
    due = raw.get("validation") and raw.get("test_at_end") and epochs == raw["num_epochs"]
    return due and not (from_root(folder) / "test.json").exists()


def epochs_done(folder):
    """The number of finished epochs of the run in `folder`.

    It is infinite if there is a best_model.tar and no last_model.tar, so that a given checkpoint counts as finished.
    """
    last, best = from_root(folder) / "last_model.tar", from_root(folder) / "best_model.tar"
    if not last.exists():
        return float("inf") if best.exists() else 0
    state = checkpoint.peek(last)
    if not {"epoch", "best"} <= state.keys():
        return 0  # when this run is trained, an error states the problem
    return state["epoch"] - best_is_outdated(state, best)  # the last epoch is not finished: best_model.tar lacks it


def epochs_logged(folder):
    """The number of epochs in the metrics.jsonl of the run in `folder`."""
    path = from_root(folder) / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def time_logged(folder):
    """The time of the last write to the metrics.jsonl of the run in `folder`, in ns, or None."""
    path = from_root(folder) / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else None


def read_metrics(path):
    """The lines of the file `path`, a metrics.jsonl, as one dictionary per epoch; [] if there is no such file.

    An incomplete last line is ignored, because a killed run may leave one. Raises UserError if a line is damaged, or if
    line N is not the line of epoch N.
    """
    *lines, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    if not is_cut(rest):
        lines.append(rest)
    metrics = [read_epoch(line, number, path) for number, line in enumerate(lines, 1)]
    if len({tuple(part in epoch for part in PARTS) for epoch in metrics}) > 1:
        raise UserError(f"{display_path(path)}: some lines lack one of {', '.join(PARTS)} that others have")
    return metrics


def is_cut(line):
    """Whether `line`, which does not end in a newline, is the beginning of a line of JSON."""
    try:
        json.loads(line.decode())
    except json.JSONDecodeError as error:
        return error.msg != "Extra data"
    except ValueError:
        pass
    return False


def read_epoch(line, number, path):
    """The dictionary in a line (bytes) of a metrics.jsonl. Raises UserError if it is not valid for epoch `number`."""
    where = f"{display_path(path)}: line {number}"
    epoch = read_line(line, where)
    if type(epoch.get("epoch")) is not int or epoch["epoch"] != number:
        raise UserError(f"{where}: must be the line of epoch {number}")
    for part in PARTS:
        terms = epoch.get(part, {"acc": 0})  # a part may be missing
        if not isinstance(terms, dict) or not are_numbers(terms.values()) or ("acc" not in terms and part != "train"):
            raise UserError(f"{where}: {part}: must have numbers, and an accuracy")
    if not are_numbers([epoch.get(name, 0) for name in ("seconds", "queries")]):
        raise UserError(f"{where}: seconds and queries must be numbers")
    return epoch


def are_numbers(values):
    """Whether all values are numbers, and none is a boolean."""
    return all(type(value) in (int, float) for value in values)


def columns(metrics):
    """{"train": {term: values per epoch}, "test" or "validation": …} of the lines of a metrics.jsonl."""
    return {
        part: {term: [epoch[part].get(term) for epoch in metrics] for term in metrics[0][part]}
        for part in PARTS
        if part in metrics[0]
    }


def scored_part(metrics):
    """The part that has accuracies, "test" or "validation". metrics: a record, or a line of a metrics.jsonl."""
    return next(part for part in SCORED if part in metrics)


def validation_accuracy(run, epoch):
    """The accuracy of the run of a Spec on its validation images, in percent. −inf if no epoch has finished.

    epoch: "best" or "last".
    """
    accuracies = [scores["acc"] for scores in validation_history(run)]
    return (max(accuracies) if epoch == "best" else accuracies[-1]) if accuracies else float("-inf")


def validation_score(run, until=None):
    """(accuracy, −loss) of the run of a Spec on its validation images at its best epoch: a larger tuple is better.

    until: number of epochs that count; default: all.
    """
    history = [(scores["acc"], -scores.get("loss", 0.0)) for scores in validation_history(run)[:until]]
    return max(history, default=(float("-inf"), float("-inf")))


def validation_history(run):
    """The scores of the run of a Spec on its validation images: {"acc": …, "loss": …} of each finished epoch."""
    return [line["validation"] for line in read_metrics(from_root(run.folder) / "metrics.jsonl")]


def test_scores(run):
    """The content of test.json in the folder of a Spec: {term: score} of its best epoch on the test images.

    Raises UserError if the file is missing or damaged.
    """
    path = from_root(run.folder) / "test.json"
    scores = unsealed(read_json(path), display_path(path))
    if not are_numbers([*scores.values(), scores.get("acc")]):
        raise UserError(f"{display_path(path)}: must have numbers, and an accuracy")
    return scores
