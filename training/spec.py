"""The identity of a run: an experiment, the keys that are changed in it, and a seed.

An experiment is a folder with a params.json, its definition. The keys that end in `resume` name checkpoints of other
experiments, on which the experiment depends. A run with changed keys has a folder of its own beside that of the
experiment. The name of this folder lists the changes; see `Spec.folder`. No code parses the name: the file spec.json in
the folder stores the Spec.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from training import changes as key_changes
from training import params
from training.changes import as_dict, as_pairs, spell
from utils.digest import sealed, unsealed
from utils.errors import UserError
from utils.keys import shorten
from utils.paths import canonical_path, display_path, from_root, make_folder, read_json, write_json

FILE = "spec.json"
CHANGES = ("changes", "teacher_changes", "common")  # fields of a Spec
LONGEST_NAME = 200  # characters of a folder's name; most file systems allow 255 bytes


@dataclass(frozen=True)
class Spec:
    """One run. Equal runs have equal specs, and different specs have different folders. `make` builds a Spec.

    The three kinds of changes are dictionaries {key: value}, stored as pairs; see `changes.as_pairs`.

    experiment: folder of the definition. A folder inside the project is relative to the project root.
    changes: keys changed in this run.
    teacher_changes: keys changed in the runs that this run depends on directly.
    common: keys changed in this run and in all runs that it depends on, directly or not.
    seed: seed of this run and of all runs that it depends on. None: any seed; see `any_seed`.
    """

    experiment: str
    changes: tuple = ()
    teacher_changes: tuple = ()
    common: tuple = ()
    seed: int | None = 0

    @property
    def folder(self):
        """The folder of the run, "experiment,key=value,…", relative to the project root like `experiment`."""
        tags = [f"{name}={spell(value)}" for name, value in self.changes]
        tags += [f"teacher.{name}={spell(value)}" for name, value in self.teacher_changes]
        tags += [f"all.{name}={spell(value)}" for name, value in self.common]
        if self.has_own_seed:
            tags.append(f"seed={self.seed}")
        path = Path(self.experiment)
        name = ",".join([path.name, *sorted(tags)])
        if len(name) > LONGEST_NAME:
            name = f"{path.name},{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        return str(path.with_name(name))

    @property
    def sources(self):
        """{"teacher_resume": Spec, …}: the runs whose checkpoints this run loads."""
        teacher_changes, common = as_dict(self.teacher_changes), as_dict(self.common)
        inherited = self.seed if self.has_own_seed else None
        seed = teacher_changes.pop("seed", inherited)
        return {
            name: make(source, teacher_changes, {}, common, seed) if is_definition(source) else of_folder(source)
            for name, source in experiments_in(own_keys(self)).items()
        }

    @property
    def raw(self):
        """The content of params.json in the folder of the run, as a new dictionary."""
        raw = own_keys(self)
        for name, source in self.sources.items():
            if source.folder != source.experiment:
                raw[name] = f"{source.folder}/{Path(raw[name]).name}"
        return raw | {"seed": self.seed} if self.has_own_seed else raw

    @property
    def has_own_seed(self):
        """Whether the seed differs from that of the experiment's definition."""
        return self.seed not in (None, default_seed(self.experiment))

    @property
    def any_seed(self):
        """This Spec with the seed None. Runs that differ only in their seeds have the same `any_seed`."""
        return replace(self, seed=None)

    def with_seed(self, seed):
        return replace(self, seed=seed)

    def to_json(self):
        """A dictionary for records and spec.json; `from_json` reverses it."""
        changed = {name: as_dict(getattr(self, name)) for name in CHANGES}
        return {"experiment": self.experiment, **{k: v for k, v in changed.items() if v}, "seed": self.seed}


def make(experiment, changes=None, teacher_changes=None, common=None, seed=None):
    """The Spec of a run, in canonical form: changes without effect are left out, and 1.0 is written as 1.

    experiment: a folder with a definition, or the folder of a run with changed keys; the changes are then added to
    those of that run. changes, teacher_changes, common: {key: value}; see `Spec`. seed: default: that of the
    definition. Raises UserError if there is no such experiment.
    """
    experiment = canonical_path(experiment)
    changes, teacher_changes = dict(changes or {}), dict(teacher_changes or {})
    common = key_changes.with_new_names(dict(common or {}))
    if not is_definition(experiment):
        run = of_folder(experiment)
        experiment = run.experiment
        seed = run.seed if seed is None and "seed" not in changes else seed
        changes, common = as_dict(run.changes) | changes, as_dict(run.common) | common
        teacher_changes = as_dict(run.teacher_changes) | teacher_changes
    raw = definition(experiment)
    depends = bool(experiments_in(key_changes.apply(raw, common | changes)))
    if not depends:  # this run loads no other run, so all changes are its own
        changes, teacher_changes, common = common | changes, {}, {}
    if "seed" in changes:  # of this run only: the runs it depends on keep their seeds
        own_seed = changes.pop("seed")
        if depends and seed is None and own_seed != default_seed(experiment):
            teacher_changes = {"seed": default_seed(experiment)} | teacher_changes
        seed = own_seed
    changes = key_changes.effective(raw | common, changes)
    sources = [definition(source) | common for source in experiments_in(raw | changes).values()]
    teacher_changes = {
        name: value
        for name, value in teacher_changes.items()
        if name == "seed" or any(name in key_changes.effective(source, teacher_changes) for source in sources)
    }
    seed = default_seed(experiment) if seed is None else seed
    spec = Spec(experiment, as_pairs(changes), as_pairs(teacher_changes), as_pairs(common), seed)
    return replace(
        spec, common=as_pairs({name: value for name, value in common.items() if has_effect(spec, name, value)})
    )


def from_json(content):
    """The Spec in `content`, a dictionary made by `Spec.to_json`. Raises UserError if `content` is not valid."""
    changed = {name: content.get(name, {}) for name in CHANGES}
    experiment, seed = content.get("experiment"), content.get("seed")
    if isinstance(experiment, str) and type(seed) is int and all(isinstance(part, dict) for part in changed.values()):
        spec = Spec(experiment, **{name: as_pairs(values) for name, values in changed.items()}, seed=seed)
        try:
            hash(spec)
            return spec
        except TypeError:  # a value is a dictionary
            pass
    raise UserError(f"not the description of a run: {shorten(json.dumps(content))}")


def of_folder(folder):
    """The Spec of the run in `folder`: read from its spec.json, or, without this file, that of the experiment."""
    file = from_root(folder) / FILE
    return from_json(unsealed(read_json(file), display_path(file))) if file.is_file() else make(str(folder))


def is_definition(folder):
    """Whether `folder` is the folder of an experiment. The folder of a run with changed keys has a spec.json."""
    return not (from_root(folder) / FILE).exists()


def definition(experiment):
    """The params.json of an experiment as a new dictionary. Renamed keys have their new names."""
    return params.with_new_names(read_json(from_root(experiment) / "params.json"))


def default_seed(experiment):
    return definition(experiment).get("seed", 0)


def experiments_in(raw):
    """{"teacher_resume": experiment, …}: the experiments that train the checkpoints named in `raw`."""
    names = [name for name in raw if name.endswith("resume") and isinstance(raw[name], str)]
    folders = {name: canonical_path(from_root(raw[name]).parent) for name in names}
    return {name: folder for name, folder in folders.items() if (from_root(folder) / "params.json").is_file()}


def own_keys(spec):
    """The definition of a run with its changed keys. Paths of checkpoints are still those of the definition."""
    return key_changes.apply(definition(spec.experiment), as_dict(spec.common) | as_dict(spec.changes))


def write(spec):
    """Write params.json, and spec.json for a run with changed keys, into the folder of the run.

    Raises UserError if the folder holds another params.json, or cannot be written.
    """
    folder, raw = from_root(spec.folder), spec.raw
    path = folder / "params.json"
    wanted = params.check(raw, path)
    if path.exists():
        existing = params.load(folder)
        lines = key_changes.differences(vars(existing), vars(wanted))
        if lines:
            raise UserError(f"{display_path(path)}: exists with other parameters:\n  " + "\n  ".join(lines))
        if existing.num_epochs == wanted.num_epochs and of_folder(spec.folder) == spec:
            return
    make_folder(folder)
    if spec.folder != spec.experiment:
        write_json(folder / FILE, sealed(spec.to_json()))
    write_json(path, raw)


def has_effect(spec, name, value):
    """Whether the common change name=value changes `spec` or a run that it depends on."""
    if key_changes.effective(definition(spec.experiment), {name: value}):
        return True
    return any(name in dict(source.changes) or has_effect(source, name, value) for source in spec.sources.values())
