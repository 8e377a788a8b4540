"""Records: finished runs on this machine, written to results/ as lines of JSON.

A record holds the spec of the run, its metrics per epoch, its parameters, and where it comes from: environment, commit,
command, and digests of the weights of the run and of the networks that it loaded.
"""

import json

from study.ledger import Local, records_file
from study.progress import columns, read_metrics, scored_part
from study.targets import is_folder, specs_of
from training import params, spec
from training.changes import differences_to_run
from utils import checkpoint
from utils.digest import read_line, sealed
from utils.errors import UserError
from utils.paths import display_path, make_folder, write_file

DIGITS = 6  # significant digits of all numbers but accuracies


def publish(target, **selection):
    """Write the finished local runs of a target to results/. selection: see `targets.load_table`.

    Returns (report, problems), two lists of lines. A run is not written if its code was modified, or if its parameters
    are not those of its definition; `problems` has a line for each such run.
    """
    local, records_of, problems = Local(), {}, []
    runs = dict.fromkeys(run.any_seed for run in specs_of(target, **selection))
    for run in runs:
        for seed, folder in local.folders(run).items():
            try:
                if record := make_record(run.with_seed(seed), folder):
                    records_of.setdefault(records_file(run.experiment), []).append(record)
            except UserError as error:
                problems.append(str(error))
    lines = [line for path, records in records_of.items() for line in write_records(path, records)]
    if is_folder(target):
        changed = {other: None for run in runs for other in local.runs_of(run.experiment) if other not in runs}
        lines += [f"{run.folder}: has changed keys; name its folder to publish it" for run in changed]
    return lines or [f"{target}: no finished run on this machine"], problems


def make_record(run, folder):
    """The record of the run of the Spec `run` in `folder`; None if it has not finished."""
    metrics, last = read_metrics(folder / "metrics.jsonl"), folder / "last_model.tar"
    wanted = vars(params.check(run.raw, folder / "params.json"))
    if not last.exists() or len(metrics) < wanted["num_epochs"]:
        return None
    state = checkpoint.load(last)
    if not checkpoint.is_of_a_run(state):
        raise UserError(f"{display_path(last)}: not a checkpoint of this project")
    where = display_path(folder)
    if lines := differences_to_run(state["params"], wanted):
        raise UserError(f"{where}: its parameters are not those of its definition: {'; '.join(lines)}")
    environment = state.get("environment", "commit unknown")
    commit = environment.rpartition("commit ")[2]
    if commit == "unknown":
        raise UserError(f"{where}: ran outside of a git repository, so its code is unknown; run it again in a clone")
    if commit.endswith("-dirty"):
        raise UserError(f"{where}: ran with modified code ({commit}); commit the code and run it again")
    return record_of_metrics(run, metrics) | {
        "params": state["params"],
        "environment": environment,
        "commit": commit,
        "command": state.get("command") or None,
        "weights": {name: digest_of_weights(folder / name) for name in ("best_model.tar", "last_model.tar")},
        "loaded": state.get("origins", {}),
    }


def record_of_metrics(run, metrics):
    """The part of a record that depends only on the Spec `run` and the lines of its metrics.jsonl."""
    accuracies = [epoch[scored_part(epoch)]["acc"] for epoch in metrics]
    history = {
        part: {term: [rounded(term, value) for value in values] for term, values in terms.items()}
        for part, terms in columns(metrics).items()
    }
    seconds = round(sum(epoch.get("seconds", 0) for epoch in metrics))
    numbers = {"epochs": len(metrics), "best": max(accuracies), "last": accuracies[-1], "seconds": seconds}
    return run.to_json() | numbers | history


def rounded(term, value):
    """The value of a term for a record: accuracies are exact, other numbers have DIGITS significant digits."""
    exact = value is None or term.startswith("acc")
    return value if exact else float(f"{value:.{DIGITS}g}")


def digest_of_weights(path):
    """The digest of the weights in a checkpoint."""
    return checkpoint.weights_digest(checkpoint.state_dict(checkpoint.load(path), path))


def identity(record):
    """The part of a record that identifies its run."""
    return json.dumps(
        {name: record.get(name) for name in ("experiment", "changes", "teacher_changes", "common", "seed")}
    )


def write_records(path, records):
    """Add `records` to the file `path`, in place of older records of the same runs. Returns a line for each."""
    old = path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.exists() else []
    where = display_path(path)
    lines = {identity(read_line(line.encode(), f"{where}: line {n}")): line for n, line in enumerate(old, 1)}
    report = []
    for new in records:
        run, line = identity(new), json.dumps(sealed(new), ensure_ascii=False)
        word = "unchanged" if lines.get(run) == line else "replaced" if run in lines else "added"
        folder = spec.from_json(new).any_seed.folder
        report.append(f"{where}: {word}: {folder}, seed {new['seed']}, best {new['best']:.2f}")
        lines[run] = line
    make_folder(path.parent)
    content = "".join(f"{lines[run]}\n" for run in sorted(lines))
    write_file(path, lambda file: file.write(content.encode()), shared=True)
    return report
