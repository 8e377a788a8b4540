"""The rows of a benchmark, and the runs behind them: the teacher of each defence, and the students of each teacher."""

from dataclasses import dataclass

from study import autosteal, matrices
from study.protocol import PRESETS, TEACHER, VALIDATION
from study.tables import loaded_epoch, make_spec, read_target
from training import params
from utils.errors import UserError, suggest

ALONE, SMOOTHED = WITHOUT_TEACHER = "alone", "label smoothing"  # students without a teacher
UNDEFENDED = "none"
REPLACEABLE = ("attacks", "draws", "seeds", "changes")  # items of the entry in tables.json
PROTOCOL_KEYS = ("validation", "test_at_end")  # `changes` must not have them


@dataclass(frozen=True)
class Case:
    """A row of the benchmark under a threat preset. There is one search for the best student of each case."""

    row: str  # a defence, or one of WITHOUT_TEACHER
    preset: str


class Cases:
    """The cases of a benchmark, an entry of experiments/tables.json, and the Specs of their runs.

    The strength of a defence is a value of one of its keys; tables.json lists the values, from strong to weak.

    rows, presets: names of defences and of threat presets; default: all. own: an OwnTeacher; the only other row is then
    the undefended teacher, unless `rows` names more. replacements: {name: value}, values that replace `attacks`
    (names), `draws`, `seeds` or `changes` (keys of all runs) of the entry. Raises UserError for an unknown name, and
    for invalid keys of a defence.
    """

    def __init__(self, name, rows=None, presets=None, own=None, replacements=None):
        self.name, self.replacements = name, replacements or {}
        check_replacements(self.replacements)
        self.entry = read_entry(name, self.replacements)
        self.defences = dict(self.entry["defences"])
        new = [row for row in rows or () if row not in self.defences]  # names of files in method/defend/
        matrices.check_names("rows", new, self.defences, "defend")
        self.defences |= {row: matrices.new_row(row, self.entry["template"], {}) for row in new}
        # {row: OwnTeacher} with at most one item
        self.own = {f"{own.name} (own)" if own.name in self.defences else own.name: own} if own else {}
        self.defences |= {row: teacher.defence(self.entry["template"]) for row, teacher in self.own.items()}
        self.rows = list(dict.fromkeys([UNDEFENDED, *(rows or ([] if own else self.defences)), *self.own]))
        self.presets = list(dict.fromkeys(presets or self.entry["presets"]))
        check_presets(self.presets)
        self.seeds, self.tuning_seed = self.entry["seeds"], self.entry["tuning_seed"]
        # {row: keys of its teacher or release rule}; the strongest ones, until `Benchmark.choose_strengths` is called
        self.chosen_strengths = {row: self.strengths(row)[0] for row in self.rows}
        self.check_keys()

    def check_keys(self):
        """Check the keys of each defence's teacher and passive thief, before anything is trained."""
        for case in (Case(row, preset) for row in self.rows if row not in self.own for preset in self.presets):
            student = self.student(case, autosteal.passive(self.attacks(case)), self.tuning_seed)
            for run in (*student.sources.values(), student):
                params.check(run.raw, case.row)

    def strengths(self, row):
        """The strengths that a defence declares, from strong to weak, as dictionaries {key: value}; default: [{}]."""
        declared = self.defences[row].get("strengths", {})
        return [{key: value} for key, values in declared.items() for value in values] or [{}]

    def attacks(self, case):
        """{name: fixed keys} of the possible attacks. Raises UserError if there are none."""
        allowed, left_out = self.allowed(case.preset), self.left_out(case)
        if len(left_out) == len(allowed):
            why = "; ".join(left_out.values()) or f"the preset allows {', '.join(PRESETS[case.preset].attacks)} only"
            raise UserError(f"{case.row}, {case.preset}: no attack is possible: {why}")
        return {name: keys for name, keys in allowed.items() if name not in left_out}

    def allowed(self, preset):
        """{name: fixed keys} of the attacks that a preset allows."""
        data_free = PRESETS[preset].attacks
        if data_free is None:
            return self.entry["attacks"]
        return {name: {} for name in data_free if name in self.replacements.get("attacks", data_free)}

    def left_out(self, case):
        """{name: error message} of the attacks that are impossible with the user's own teacher."""
        problems = {}
        if case.row in self.own:
            for name in self.allowed(case.preset):
                keys = {key: values[0] for key, values in autosteal.space_of(name).items()}  # some keys have no default
                try:
                    params.check(self.student(case, {"method": name} | keys, self.tuning_seed).raw, name)
                except UserError as error:
                    problems[name] = str(error)
        return problems

    def student(self, case, changes, seed, final=False, strength=None):
        """The Spec of a student with the changed keys `changes`.

        final: whether the test images are scored after the last epoch. strength: {key: value} of the defence; default:
        the chosen one.
        """
        preset = dict(PRESETS[case.preset].changes)
        shared = {"validation": VALIDATION, "test_at_end": final} | self.entry["changes"]
        if case.row in WITHOUT_TEACHER:
            preset.pop("answers", None)
            return make_spec(self.entry["alone"], changes=preset | shared | changes, seed=seed)
        defence = self.defences[case.row]
        strength = self.chosen_strengths[case.row] if strength is None else strength
        in_student, in_teacher = defence.get("changes", {}), defence.get("teacher_changes", {})
        if "release" in in_student:  # the strength is a key of the release rule
            in_student = in_student | strength
        else:
            in_teacher = in_teacher | strength
        changes, common = in_student | preset | shared | changes, TEACHER | self.entry["changes"]
        return make_spec(defence["student"], changes=changes, teacher_changes=in_teacher, common=common, seed=seed)

    def teacher(self, row, seed, strength=None):
        """The Spec of the teacher of a defence, which is the same under all presets.

        Not for a row in `self.own`: no run trains the user's checkpoint.
        """
        return self.student(Case(row, "insider"), {}, seed, strength=strength).sources["teacher_resume"]

    def loaded_epoch(self, row):
        """The epoch of the teacher of a defence that its students load: "best" or "last"."""
        return loaded_epoch(self.student(Case(row, "insider"), {}, self.tuning_seed))


def check_replacements(replacements):
    """Raise UserError for an item that cannot be replaced, for an empty list, and for a key of the protocol."""
    for item, value in replacements.items():
        if item not in REPLACEABLE:
            raise UserError(f'"{item}" cannot be replaced in a benchmark; allowed are {", ".join(REPLACEABLE)}')
        if item in ("attacks", "seeds") and not value:
            raise UserError(f'"{item}" of a benchmark must name at least one')
        if fixed := [key for key in PROTOCOL_KEYS if item == "changes" and key in value]:
            raise UserError(f'"changes" of a benchmark must not have "{fixed[0]}", which the protocol sets')


def read_entry(name, replacements):
    """The entry of the benchmark `name` with the replaced items. Raises UserError for an unknown attack."""
    published = {"changes": {}, "more_attacks": {}} | read_target(name)
    entry = published | replacements
    if "attacks" in replacements:
        known, names = published["more_attacks"] | published["attacks"], replacements["attacks"]
        matrices.check_names("columns", [attack for attack in names if attack not in known], known, "attack")
        entry["attacks"] = {attack: known.get(attack, {}) for attack in names}
    return entry


def check_presets(presets):
    """Raise UserError for an unknown preset."""
    for preset in presets:
        if preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise UserError(f'unknown preset "{preset}"; there are {known}{suggest(preset, PRESETS)}')
