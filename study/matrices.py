"""Matrices of experiments/tables.json: defences × attacks, with new rows and columns for new files in method/."""

import dataclasses
import shlex
from dataclasses import dataclass

import method
from method.attack import Attack
from study.tables import Cell, Table, loaded_epoch, make_spec
from training.changes import check_common
from training.params import Common
from utils.errors import UserError, suggest


@dataclass(frozen=True)
class Matrix(Table):
    """Defences × attacks. The first cell of a row is the teacher, the others the student of each attack.

    alone, yardstick, control: students without a teacher; see forms.py. new: the columns that are not in
    experiments/tables.json.
    """

    alone: Cell = None
    yardstick: Cell = None
    control: Cell | None = None
    new: tuple = ()

    def cells(self):
        """All cells: students without a teacher, teachers, and students of all attacks."""
        return [self.alone, self.yardstick, *([self.control] if self.control else []), *super().cells()]


def load_matrix(entry, common, rows, columns):
    """The Matrix of an entry of tables.json. Other arguments and errors: see `targets.load_table`."""
    new_rows = [name for name in rows or () if name not in entry["defences"]]
    new_columns = [name for name in columns or () if name not in entry["attacks"]]
    check_names("rows", new_rows, entry["defences"], "defend")
    check_names("columns", new_columns, entry["attacks"], "attack")
    declared = {name: declared_keys(name) for name in (*new_rows, *new_columns)}
    new_keys = {key for fields in declared.values() for key in fields}
    changes = {name: {key: common[key] for key in common if key in fields} for name, fields in declared.items()}
    common = check_common({key: value for key, value in common.items() if key not in new_keys}, new_keys)

    defences = {name: {"student": student} for name, student in entry["defences"].items()}
    defences |= {name: new_row(name, entry["template"], changes[name]) for name in new_rows}
    attacks = entry["attacks"] | {name: new_column(name, entry, changes[name]) for name in new_columns}
    attacks = {name: attacks[name] for name in columns or attacks}
    cells = [(name, row_of_matrix(defences[name], attacks, common)) for name in rows or defences]
    alone = Cell(make_spec(entry["alone"], common=common))
    others = {
        name: Cell(make_spec(entry["alone"], changes=entry[name], common=common))
        for name in ("yardstick", "control")
        if name in entry
    }
    headers = ["teacher", *attacks]
    return Matrix(entry["title"], entry["source"], headers, cells, alone=alone, **others, new=tuple(new_columns))


def row_of_matrix(defence, attacks, common):
    """The cells of a row: the teacher in the epoch that its students load, and the student of each attack."""
    student, changes = defence["student"], defence.get("changes", {})
    plain = make_spec(student, changes=changes, teacher_changes=defence.get("teacher_changes"), common=common)
    teacher = Cell(plain.sources["teacher_resume"], epoch=loaded_epoch(plain))
    specs = [
        make_spec(student, changes=changes | attack, teacher_changes=defence.get("teacher_changes"), common=common)
        for attack in attacks.values()
    ]
    return [teacher, *map(Cell, specs)]


def check_names(flag, names, present, kind):
    """Raise UserError unless method/`kind`/ defines a defence or an attack for each of `names`.

    flag: "rows" or "columns". present: names of the rows or columns that the matrix has.
    """
    files = method.files()
    for name in names:
        if name not in files[kind]:
            known = sorted({*present, *files[kind]})
            fitting = [other for other, folder in (("rows", "defend"), ("columns", "attack")) if name in files[folder]]
            hint = f"; use --{fitting[0]} {name}" if fitting else suggest(name, known)
            word = "defence" if kind == "defend" else "attack"
            raise UserError(f"--{flag} {name}: no such {word}; there are {', '.join(map(shlex.quote, known))}{hint}")
        if name not in method.names()[kind] and not method.is_release(name):
            base = "Method or Release" if kind == "defend" else "Attack"
            raise UserError(f"--{flag} {name}: method/{kind}/{name}.py defines no subclass of {base}")


def new_row(name, template, keys):
    """The row of a matrix for the file `name` in method/defend/: an experiment of a student, and the keys to change.

    template: of the matrix; see forms.py. keys: {key: value} that the user changes.
    """
    if is_rule(name):
        return {"student": template["undefended"], "changes": defaults_of(name) | keys | {"release": name}}
    return {"student": template["defended"], "teacher_changes": defaults_of(name) | keys | {"method": name}}


def new_column(name, entry, keys):
    """The keys to change in a student for the file `name` in method/attack/.

    entry: of the matrix. keys: {key: value} that the user changes. A key without a default gets the value that it
    has in the first attack of the matrix, so that the new attack has the same settings in all rows.
    """
    declared, first = declared_keys(name), next(iter(entry["attacks"].values()))
    usual = {key: value for key, value in first.items() if key in declared}
    return usual | defaults_of(name) | keys | {"method": name}


def is_rule(name):
    """Whether the file `name` defines a release rule and no method."""
    return method.is_release(name) and name not in method.names()["defend"]


def declared_keys(name):
    """{key: dataclass field} that the file `name` in method/ adds to those of every run and of every attack."""
    declaring = method.find_release(name) if is_rule(name) else method.find(name)
    shared = {field.name for part in (Common, Attack.Params) for field in dataclasses.fields(part)}
    return {field.name: field for field in dataclasses.fields(declaring.Params) if field.name not in shared}


def defaults_of(name):
    """{key: default} of the keys that the file `name` declares."""
    fields = declared_keys(name).items()
    return {key: field.default for key, field in fields if field.default is not dataclasses.MISSING}
