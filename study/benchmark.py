"""The benchmark of undistillable teachers: it tunes an attack to each defence. See docs/benchmark.md.

1. For each defence, the largest strength is chosen at which the teacher loses at most one point of validation accuracy.
2. AutoSteal chooses an attack for each defence and threat preset by validation accuracy. The student alone and the
   student with label smoothing are tuned in the same way. Results of the search are not reported.
3. The chosen attack, plain distillation that is not tuned (the passive thief) and both students run with other seeds.
   Test accuracy is computed once.
"""

from itertools import chain

from study import autosteal
from study.cases import SMOOTHED, UNDEFENDED, WITHOUT_TEACHER, Case, Cases
from study.progress import validation_accuracy, validation_score
from study.protocol import LARGEST_PRICE


class Benchmark(Cases):
    """The cases of a benchmark, and the steps that choose and train their runs.

    execute: a function that trains the runs in a list of (Spec, epoch to stop after or None). The other arguments are
    those of Cases.
    """

    def __init__(self, name, execute, rows=None, presets=None, own=None, replacements=None):
        super().__init__(name, rows, presets, own, replacements)
        self.execute = execute
        self.chosen = {}  # {Case: changed keys of the student that the search chose}
        self.scores = {}  # {Case: validation score of this student}

    def run(self):
        """Run all steps in order. Finished runs are not repeated."""
        self.choose_strengths()
        self.search(self.cases())
        finals = [run for case in self.cases() for seed in self.seeds for run in self.finals(case, seed).values()]
        self.execute([(run, None) for run in dict.fromkeys(finals)])

    def overview(self):
        """The runs that `run` would train, and the number of their epochs if no run has begun, as a string."""
        teachers, finals, epochs = set(), 0, 0
        for row in (row for row in self.rows if row not in self.own):
            teachers |= {self.teacher(row, self.tuning_seed, strength) for strength in self.strengths(row)}
            # the strength of the final teachers is not chosen yet; the number is the same with any strength
            teachers |= {self.teacher(row, seed) for seed in self.seeds}
        for case in self.cases():
            count = len(self.seeds) * (1 if case.row in WITHOUT_TEACHER else 2)
            rungs = self.rungs(case, self.draws(case))
            finals, epochs = finals + count, epochs + count * rungs[-1][1]
            ends = [until for _, until in rungs]
            epochs += sum(n * (end - begin) for (n, end), begin in zip(rungs, [0, *ends[:-1]], strict=True))
        epochs += sum(teacher.raw["num_epochs"] for teacher in teachers)
        return (
            f"{len(self.rows)} defences ({', '.join(self.rows)}), {len(self.presets)} presets: {len(teachers)} "
            f"teachers, {len(self.cases())} searches of up to {self.entry['draws']} draws, {finals} final students: "
            f"{epochs} epochs"
        )

    def cases(self):
        """All cases: the rows and the students without a teacher, under each preset."""
        return [Case(row, preset) for preset in self.presets for row in (*self.rows, *WITHOUT_TEACHER)]

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
        rungs, scores = {case: self.rungs(case, draws[case]) for case in cases}, {}
        for rung in range(max(map(len, rungs.values()))):
            trials = {}
            for case in (case for case in cases if rung < len(rungs[case])):
                count, until = rungs[case][rung]
                for number in alive[case][:count]:
                    trials[case, number] = self.student(case, draws[case][number], self.tuning_seed), until
            self.execute(list(trials.values()))
            for case in dict.fromkeys(case for case, _ in trials):
                scores[case] = {n: validation_score(*trial) for (of, n), trial in trials.items() if of == case}
                alive[case] = autosteal.ranked(scores[case])
        self.chosen |= {case: draws[case][numbers[0]] for case, numbers in alive.items()}
        self.scores |= {case: scores[case][numbers[0]] for case, numbers in alive.items()}

    def draws(self, case):
        """The settings that the search of a case tries, as dictionaries of changed keys. Each leads to another run."""
        count, raw = self.entry["draws"], self.student(case, {}, self.tuning_seed).raw
        if case.row in WITHOUT_TEACHER:
            found = autosteal.draw_students(count, raw, self.tuning_seed, case.row == SMOOTHED)
        else:
            found = autosteal.draw_thieves(self.attacks(case), count, raw, self.tuning_seed)
        runs = [self.student(case, drawn, self.tuning_seed) for drawn in found]
        return [drawn for number, drawn in enumerate(found) if runs[number] not in runs[:number]]

    def rungs(self, case, draws):
        """The stages of the search of a case among `draws`: [(number of draws, epoch until which they train), …]."""
        return autosteal.rungs(len(draws), self.student(case, {}, self.tuning_seed).raw["num_epochs"])

    def yardstick(self, preset):
        """The Case of the student without a teacher that the search found better: ALONE or SMOOTHED."""
        return max((Case(row, preset) for row in WITHOUT_TEACHER), key=self.scores.get)

    def finals(self, case, seed):
        """{"chosen": Spec, "passive": Spec} of the final runs with `seed`. Only a defence has a passive thief."""
        specs = {"chosen": self.student(case, self.chosen[case], seed, final=True)}
        if case.row not in WITHOUT_TEACHER:
            passive = autosteal.passive(self.attacks(case))
            specs["passive"] = self.student(case, passive, seed, final=True)
        return specs
