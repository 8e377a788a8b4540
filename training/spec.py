"""The identity of a run: an experiment, the keys that are changed in it, and a seed.

An experiment is a folder with a params.json, its definition. The checkpoints that its `*_resume` keys name are made by
other experiments, on which it depends. A run with changed keys lies beside its experiment, in a folder whose name lists
them. The name is written by `Spec.folder` and never parsed: the folder holds a file spec.json instead.
"""

import hashlib
import json
import os
import urllib.parse
from dataclasses import dataclass, replace
from pathlib import Path

from training import changes as key_changes
from training import params
from utils.digest import sealed, unsealed
from utils.errors import UserError
from utils.jsonfile import read_json
from utils.keys import LARGEST, shorten
from utils.paths import display_path, from_root, write_file

FILE = "spec.json"
LONGEST_NAME = 200  # characters of a folder's name; most file systems allow 255 bytes


@dataclass(frozen=True)
class Spec:
    """One run. Equal runs have equal specs, and different specs have different folders; see `make`.

    experiment: folder of the definition, relative to the project root if it lies below it.
    changes: {key: value} changed in this run.
    teacher_changes: {key: value} changed in the experiments that it depends on directly.
    common: {key: value} changed in the run and in all that it depends on, directly or not.
    seed: of the run and of all that it depends on. None: any seed; see `any_seed`.
    """

    experiment: str
    changes: tuple = ()
    teacher_changes: tuple = ()
    common: tuple = ()
    seed: int | None = 0

    @property
    def folder(self):
        """The folder of the run, "experiment,key=value,…", relative to the root like `experiment`."""
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
        teacher_changes, common = thawed(self.teacher_changes), thawed(self.common)
        chain = self.seed if self.has_own_seed else None
        seed = teacher_changes.pop("seed", chain)
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
        """The spec without its seed, which all seeds of a run have in common."""
        return replace(self, seed=None)

    def with_seed(self, seed):
        return replace(self, seed=seed)

    def to_json(self):
        """A dictionary for records and spec.json; `from_json` reverses it."""
        fields = {name: thawed(getattr(self, name)) for name in ("changes", "teacher_changes", "common")}
        return {"experiment": self.experiment, **{k: v for k, v in fields.items() if v}, "seed": self.seed}


def make(experiment, changes=None, teacher_changes=None, common=None, seed=None):
    """The Spec of a run in canonical form: changes without effect are left out, and 1.0 is 1.

    experiment: a folder with a definition; in that of a run with changed keys, the changes are further ones. seed:
    default: that of the definition. Raises UserError if there is no such experiment.
    """
    experiment = canonical_folder(experiment)
    changes, teacher_changes = dict(changes or {}), dict(teacher_changes or {})
    common = key_changes.with_new_names(dict(common or {}))
    if not is_definition(experiment):
        run = of_folder(experiment)
        experiment = run.experiment
        seed = run.seed if seed is None and "seed" not in changes else seed
        changes, common = thawed(run.changes) | changes, thawed(run.common) | common
        teacher_changes = thawed(run.teacher_changes) | teacher_changes
    raw = definition(experiment)
    depends = bool(experiments_in(raw))
    if not depends:  # there is no other run that could differ
        changes, teacher_changes, common = common | changes, {}, {}
    if "seed" in changes:  # of this run only: the runs it depends on keep their seeds
        own = changes.pop("seed")
        if depends and seed is None and own != default_seed(experiment):
            teacher_changes = {"seed": default_seed(experiment)} | teacher_changes
        seed = own
    changes = key_changes.effective(raw | common, changes)
    sources = [definition(source) | common for source in experiments_in(raw | changes).values()]
    teacher_changes = {
        name: value
        for name, value in teacher_changes.items()
        if name == "seed" or any(name in key_changes.effective(source, teacher_changes) for source in sources)
    }
    seed = default_seed(experiment) if seed is None else seed
    spec = Spec(experiment, frozen(changes), frozen(teacher_changes), frozen(common), seed)
    return replace(spec, common=frozen({name: value for name, value in common.items() if differs(spec, name, value)}))


def from_json(content):
    """The Spec that `Spec.to_json` describes. Raises UserError if it describes none."""
    fields = {name: content.get(name, {}) for name in ("changes", "teacher_changes", "common")}
    experiment, seed = content.get("experiment"), content.get("seed")
    if (
        not isinstance(experiment, str)
        or type(seed) is not int
        or not all(isinstance(v, dict) for v in fields.values())
    ):
        raise UserError(f"not the description of a run: {shorten(json.dumps(content))}")
    spec = Spec(experiment, **{name: frozen(values) for name, values in fields.items()}, seed=seed)
    try:
        hash(spec)
    except TypeError:  # a dictionary as a value
        raise UserError(f"not the description of a run: {shorten(json.dumps(content))}") from None
    return spec


def of_folder(folder):
    """The Spec of the run in `folder`: that in its spec.json, or that of the experiment if there is none."""
    file = from_root(folder) / FILE
    return from_json(unsealed(read_json(file), display_path(file))) if file.is_file() else make(str(folder))


def is_definition(folder):
    """Whether `folder` holds the definition of an experiment, and not a run with changed keys."""
    return not (from_root(folder) / FILE).exists()


def definition(experiment):
    """The params.json of an experiment, with today's names of keys, as a new dictionary."""
    return params.with_new_names(read_json(from_root(experiment) / "params.json"))


def default_seed(experiment):
    return definition(experiment).get("seed", 0)


def canonical_folder(path):
    """A folder as specs name it: without links and "..", relative to the project root if it lies below it."""
    return display_path(os.path.realpath(from_root(path)))


def experiments_in(raw):
    """{"teacher_resume": experiment, …}: the experiments that make the checkpoints named in `raw`."""
    names = [name for name in raw if name.endswith("resume") and isinstance(raw[name], str)]
    folders = {name: canonical_folder(from_root(raw[name]).parent) for name in names}
    return {name: folder for name, folder in folders.items() if (from_root(folder) / "params.json").is_file()}


def own_keys(spec):
    """The definition of a run with its changed keys; its `*_resume` keys are those of the definition."""
    return key_changes.apply(definition(spec.experiment), thawed(spec.common) | thawed(spec.changes))


def write(spec):
    """Write params.json, and spec.json for a run with changed keys, into the folder of the run.

    Raises UserError if the folder holds another params.json, or cannot be written.
    """
    folder, raw = from_root(spec.folder), spec.raw
    path = folder / "params.json"
    wanted = params.check(raw, path)
    if path.exists():
        there = params.load(folder)
        lines = key_changes.differences(vars(there), vars(wanted))
        if lines:
            raise UserError(f"{path}: exists with other parameters:\n  " + "\n  ".join(lines))
        if there.num_epochs == wanted.num_epochs and of_folder(spec.folder) == spec:
            return
    try:
        folder.mkdir(exist_ok=True, parents=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    if spec.folder != spec.experiment:
        write_json(folder / FILE, sealed(spec.to_json()))
    write_json(path, raw)


def write_json(path, content):
    write_file(path, lambda file: file.write(f"{json.dumps(content, indent=4)}\n".encode()), shared=True)


def differs(spec, name, value):
    """Whether the common change name=value changes `spec` or a run that it depends on."""
    if key_changes.effective(definition(spec.experiment), {name: value}):
        return True
    return any(name in dict(source.changes) or differs(source, name, value) for source in spec.sources.values())


def frozen(values):
    """{name: value} as a sorted tuple of pairs, in which equal numbers are written alike."""
    return tuple(sorted((name, canonical(value)) for name, value in values.items()))


def thawed(pairs):
    """The dictionary from which `frozen` made `pairs`."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


def canonical(value):
    """`value` with equal values written alike: 1 for 1.0 and true, tuples for lists."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST):
        return int(value)
    return tuple(map(canonical, value)) if isinstance(value, (list, tuple)) else value


def spell(value):
    """`value` in a folder's name. Different values have different spellings, without special shell characters."""
    if isinstance(value, tuple):
        return "+".join(map(spell, value)) or "none"
    if isinstance(value, str):
        quoted = urllib.parse.quote(value, safe="")
        return f"%{ord(quoted[0]):02X}{quoted[1:]}" if quoted in ("null", "true", "false") else quoted
    return json.dumps(value)
