"""The baseline of a student: the same network, trained without a teacher."""

from pathlib import Path

import model
from training import spec
from utils.paths import from_root


def baseline(student):
    """The Spec of the baseline of a student's Spec, with its common changes and its seed; None if there is none.

    It is an experiment in the folder baseline/ beside the student's folder: the one of the same name, or else the
    first one with the same network.
    """
    path = Path(student.experiment)
    folder = path.parent.parent / "baseline"
    if (from_root(folder) / path.name / "params.json").exists():
        return spec.make(str(folder / path.name), common=dict(student.common), seed=student.seed)
    raw = student.raw
    options = {"model_name": None} | model.options(raw["model_name"])
    for file in sorted(from_root(folder).glob("*/params.json")):
        experiment = str(folder / file.parent.name)
        if not spec.is_definition(experiment):
            continue
        other = spec.definition(experiment)
        if all(other.get(key, usual) == raw.get(key, usual) for key, usual in options.items()):
            return spec.make(experiment, common=dict(student.common), seed=student.seed)
    return None
