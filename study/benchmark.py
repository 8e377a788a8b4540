"""The benchmark of undistillable teachers: it tunes an attack to each defence. See docs/benchmark.md.

1. For each defence, the largest strength is chosen at which the teacher loses at most one point of validation accuracy.
2. AutoSteal chooses an attack for each defence and threat preset by validation accuracy. The student without a teacher
   and the student with label smoothing are tuned with the same number of draws. Results of the search are not reported.
3. The chosen attack, plain distillation that is not tuned (the passive thief) and both students run with other seeds.
   Test accuracy is computed once.

The strength of a defence is a value of one of its keys; tables.json lists the values, from strong to weak.
"""

from dataclasses import dataclass
from itertools import chain

from study import autosteal, matrices
from study.progress import validation_accuracy
from study.protocol import LARGEST_PRICE, PRESETS, TEACHER, VALIDATION
from study.tables import loaded_epoch, make_spec, read_target
from training import params
from utils.errors import UserError, suggest

ALONE, YARDSTICK = "alone", "yardstick"  # students without a teacher; YARDSTICK has label smoothing
UNDEFENDED = "none"
REPLACEABLE = ("attacks", "draws", "seeds", "changes")  # items of the entry in tables.json
PROTOCOL_KEYS = ("validation", "test_at_end")  # `changes` must not have them


@dataclass(frozen=True)
class Case:
    """A row of the benchmark under a threat preset. There is one search for the best student of each case."""

    row: str  # a defence, ALONE or YARDSTICK
    preset: str


class Benchmark:
    """The runs of a benchmark, an entry of experiments/tables.json.

    execute: a function that trains the runs in a list of (Spec, epoch to stop after or None). rows, presets: names of
    defences and of threat presets; default: all. own: an OwnTeacher; the only other row is then the undefended teacher,
    unless `rows` names more. replacements: {name: value}, values that replace `attacks` (names), `draws`, `seeds` or
    `changes` (keys of all runs) of the entry. Raises UserError for an unknown name, and for invalid keys of a defence.
    """

    def __init__(self, name, execute, rows=None, presets=None, own=None, replacements=None):
        self.name, self.execute, self.replacements = name, execute, replacements or {}
        for item, value in self.replacements.items():
            if item not in REPLACEABLE:
                raise UserError(f'"{item}" cannot be replaced in a benchmark; allowed are {", ".join(REPLACEABLE)}')
            if item in ("attacks", "seeds") and not value:
                raise UserError(f'"{item}" of a benchmark must name at least one')
            if fixed := [key for key in PROTOCOL_KEYS if item == "changes" and key in value]:
                raise UserError(f'"changes" of a benchmark must not have "{fixed[0]}", which the protocol sets')
        published = {"changes": {}, "more_attacks": {}} | read_target(name)
        self.entry = published | self.replacements
        if "attacks" in self.replacements:
            known, names = published["more_attacks"] | published["attacks"], self.replacements["attacks"]
            matrices.check_names("columns", [attack for attack in names if attack not in known], known, "attack")
            self.entry["attacks"] = {attack: known.get(attack, {}) for attack in names}
        self.defences = dict(self.entry["defences"])
        new = [row for row in rows or () if row not in self.defences]  # names of files in method/defend/
        matrices.check_names("rows", new, self.defences, "defend")
        self.defences |= {row: matrices.new_row(row, self.entry["template"], {}) for row in new}
        # {row: OwnTeacher} with at most one item
        self.own = {f"{own.name} (own)" if own.name in self.defences else own.name: own} if own else {}
        self.defences |= {row: teacher.defence(self.entry["template"]) for row, teacher in self.own.items()}
        self.rows = list(dict.fromkeys([UNDEFENDED, *(rows or ([] if own else self.defences)), *self.own]))
        self.presets = list(dict.fromkeys(presets or self.entry["presets"]))
        for preset in self.presets:
            if preset not in PRESETS:
                known = ", ".join(PRESETS)
                raise UserError(f'unknown preset "{preset}"; there are {known}{suggest(preset, PRESETS)}')
        self.seeds, self.tuning_seed = self.entry["seeds"], self.entry["tuning_seed"]
        self.chosen_strengths = {row: {} for row in self.rows}  # {defence: keys of its teacher, or of its release rule}
        self.chosen = {}  # {Case: changed keys of the student that the search chose}
        self.check_keys()

    def check_keys(self):
        """Check the keys of each defence's teacher and passive thief, before anything is trained."""
        for case in (Case(row, preset) for row in self.rows if row not in self.own for preset in self.presets):
            strength, passive = self.strengths(case.row)[0], autosteal.passive(self.attacks(case))
            student = self.student(case, passive, self.tuning_seed, strength=strength)
            for run in (*student.sources.values(), student):
                params.check(run.raw, case.row)

    def run(self):
        """Run all steps in order. Finished runs are not repeated."""
        self.choose_strengths()
        cases = [Case(row, preset) for preset in self.presets for row in (*self.rows, ALONE, YARDSTICK)]
        self.search(cases)
        finals = [run for case in cases for seed in self.seeds for run in self.finals(case, seed).values()]
        self.execute([(run, None) for run in dict.fromkeys(finals)])

    def overview(self):
        """The runs that `run` would train, as a string."""
        cases, draws = len(self.presets) * (len(self.rows) + 2), self.entry["draws"]
        finals = len(self.presets) * (2 * len(self.rows) + 2) * len(self.seeds)
        teachers = set()
        for row in self.rows:
            if row not in self.own:
                strengths = self.strengths(row)
                teachers |= {self.teacher(row, self.tuning_seed, strength) for strength in strengths}
                # the strength of the final teachers is not chosen yet; the number is the same with any strength
                teachers |= {self.teacher(row, seed, strengths[0]) for seed in self.seeds}
        return (
            f"{len(self.rows)} defences ({', '.join(self.rows)}), {len(self.presets)} presets: {len(teachers)} "
            f"teachers, {cases} searches of {draws} draws, {finals} final students"
        )

    def strengths(self, row):
        """The strengths that a defence declares, from strong to weak, as dictionaries {key: value}; default: [{}]."""
        declared = self.defences[row].get("strengths", {})
        return [{key: value} for key, values in declared.items() for value in values] or [{}]

    def choose_strengths(self):
        """For each defence, choose the first strength whose teacher loses at most LARGEST_PRICE points.

        If all lose more, the last is chosen.
        """
        teachers = {
            row: [self.teacher(row, self.tuning_seed, strength) for strength in self.strengths(row)]
            for row in self.rows
            if row not in self.own
        }
        self.execute([(teacher, None) for teacher in dict.fromkeys(chain.from_iterable(teachers.values()))])
        (undefended,) = teachers[UNDEFENDED]
        lowest = validation_accuracy(undefended, epoch=self.loaded_epoch(UNDEFENDED)) - LARGEST_PRICE
        for row, candidates in teachers.items():
            epoch = self.loaded_epoch(row)
            accurate = [validation_accuracy(teacher, epoch=epoch) >= lowest for teacher in candidates]
            number = accurate.index(True) if any(accurate) else -1
            self.chosen_strengths[row] = self.strengths(row)[number]

    def search(self, cases):
        """Choose a student for each case by successive halving, all cases at the same time."""
        draws = {case: self.draws(case) for case in cases}
        alive = {case: list(range(len(settings))) for case, settings in draws.items()}
        epochs = {case: self.student(case, {}, self.tuning_seed).raw["num_epochs"] for case in cases}
        for rung in range(len(autosteal.rungs(self.entry["draws"], 1))):
            trials = {}
            for case in cases:
                count, until = autosteal.rungs(len(draws[case]), epochs[case])[rung]
                alive[case] = alive[case][:count]
                for number in alive[case]:
                    trials[case, number] = self.student(case, draws[case][number], self.tuning_seed), until
            self.execute(list(trials.values()))
            for case in cases:
                scored = {n: validation_accuracy(*trials[case, n]) for n in alive[case]}
                alive[case] = autosteal.ranked(scored)
        self.chosen = {case: draws[case][numbers[0]] for case, numbers in alive.items()}

    def draws(self, case):
        """The settings that the search of a case tries, as dictionaries of changed keys of the student."""
        count, raw = self.entry["draws"], self.student(case, {}, self.tuning_seed).raw
        if case.row in (ALONE, YARDSTICK):
            return autosteal.draw_students(count, raw, self.tuning_seed, case.row == YARDSTICK)
        return autosteal.draw_thieves(self.attacks(case), count, raw, self.tuning_seed)

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

    def finals(self, case, seed):
        """{"chosen": Spec, "passive": Spec} of the final runs with `seed`. Only a defence has a passive thief."""
        specs = {"chosen": self.student(case, self.chosen[case], seed, final=True)}
        if case.row not in (ALONE, YARDSTICK):
            passive = autosteal.passive(self.attacks(case))
            specs["passive"] = self.student(case, passive, seed, final=True)
        return specs

    def student(self, case, changes, seed, final=False, strength=None):
        """The Spec of a student with the changed keys `changes`.

        final: whether the test images are scored after the last epoch. strength: {key: value} of the defence; default:
        the chosen one.
        """
        preset = dict(PRESETS[case.preset].changes)
        shared = {"validation": VALIDATION, "test_at_end": final} | self.entry["changes"]
        if case.row in (ALONE, YARDSTICK):
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
