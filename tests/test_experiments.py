"""The experiments agree with the settings of the release and with the papers' tables."""

import json
from itertools import chain
from pathlib import Path

import pytest

from study.intervals import mean
from study.ledger import Recorded
from study.targets import load_table
from training import params

ROOT = Path(__file__).resolve().parents[1] / "experiments"
DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "TinyImageNet": "tiny_imagenet"}
TREE = {
    path.parent.relative_to(ROOT).as_posix(): json.loads(path.read_text())
    for dataset in DATASETS
    for path in sorted((ROOT / dataset).rglob("params.json"))
    if not (path.parent / "spec.json").exists()  # runs with changed keys or seeds
}
TARGETS = json.loads((ROOT / "tables.json").read_text())
TARGETS = {name: target for name, target in TARGETS.items() if isinstance(target, dict)}  # a string is an alias
SWEEPS = {name: target for name, target in TARGETS.items() if "key" in target}
BENCHMARKS = {name: target for name, target in TARGETS.items() if "presets" in target}
MATRICES = {name: target for name, target in TARGETS.items() if "defences" in target and name not in BENCHMARKS}
TABLES = {name: target for name, target in TARGETS.items() if "columns" in target}
OF_PAPERS = {name: table for name, table in TABLES.items() if all("cells" in row for row in table["rows"])}

# The 60 released folders; settings per data set: schedule, gamma, epochs, temperature, weight (omega).
RELEASED = {
    "CIFAR10/baseline": "cnn preresnet20 preresnet32 resnet18 resnext29",
    "CIFAR10/kd_nasty_resnet18": "nasty_resnet18 cnn preresnet20 preresnet32",
    "CIFAR10/kd_normal_resnet18": "cnn preresnet20 preresnet32",
}
for big in ("CIFAR100", "TinyImageNet"):
    RELEASED[f"{big}/baseline"] = "mobilenetv2 resnet18 resnet50 resnext29 shufflenetv2"
    for teacher, more in (("resnet18", ""), ("resnet50", " resnet18"), ("resnext29", " resnet18")):
        RELEASED[f"{big}/kd_normal_{teacher}"] = f"mobilenetv2 shufflenetv2{more}"
        RELEASED[f"{big}/kd_nasty_{teacher}"] = f"nasty_{teacher} mobilenetv2 shufflenetv2{more}"
RELEASED = [f"{folder}/{name}" for folder, names in RELEASED.items() for name in names.split()]
SETTINGS = {
    "CIFAR10": ([80, 120], 0.1, 160, 4, 0.04),
    "CIFAR100": ([60, 120, 160], 0.2, 200, 20, 0.005),
    "TinyImageNet": ([60, 120, 160], 0.2, 200, 20, 0.01),
}
MILDLY_NASTY = ("half", "light", "light-deep")
# First words of the names of defended teachers
DEFENDED = (
    "nasty_",
    "nastier_",
    "possessive_",
    "sdb_",
    *(f"{variant}_" for variant in MILDLY_NASTY),
)
# Teachers of other papers, which are in no table of Nasty Teacher. resnet8 is a student of the possessive teacher.
OTHERS = {
    "CIFAR10/baseline": "resnet8",
    "CIFAR10/kd_nastier_resnet18": "nastier_resnet18 cnn",
    "CIFAR10/kd_possessive_resnet18": "possessive_resnet18 cnn resnet8",
    "CIFAR10/kd_stingy_resnet18": "cnn",
    "CIFAR10/kd_sdb_resnet18": "sdb_resnet18 cnn cnn_key preresnet20 preresnet20_key",
    "CIFAR10/kd_sdb_resnet18_lambda_0.5": "sdb_resnet18 cnn cnn_key",
    "CIFAR10/kd_perturb_resnet18": "cnn",
    "CIFAR100/kd_sdb_resnet18": "sdb_resnet18 shufflenetv2 shufflenetv2_key mobilenetv2 mobilenetv2_key",
    "TinyImageNet/kd_sdb_resnet18": "sdb_resnet18 shufflenetv2 shufflenetv2_key mobilenetv2 mobilenetv2_key",
}
OTHERS |= {f"CIFAR10/kd_{kind}_resnet18": f"{kind}_resnet18 cnn" for kind in MILDLY_NASTY}
OTHERS = {f"{folder}/{name}" for folder, names in OTHERS.items() for name in names.split()}
# The published settings of the data-free attacks. The weights of DAFL are a_oh, a_ie, a_act.
DATA_FREE = {
    "dafl": {"iterations_per_epoch": 120, "noise_size": 1000, "generator_learning_rate": 0.02},
    "dfad": {"iterations_per_epoch": 50, "student_steps": 5, "noise_size": 256, "generator_learning_rate": 0.001},
    "deepinversion": {"temperature": 3, "image_batches": 1000, "new_batches": 10, "inversion_steps": 2000,
                      "inversion_learning_rate": 0.05, "a_f": 10, "a_tv": 2.5e-5, "a_l2": 0, "a_c": 0},
}  # fmt: skip
DATA_FREE_LENGTHS = {"dafl": ([800, 1600], 0.1, 1024, 2000), "dfad": ([100, 200], 0.1, 256, 500)}
DAFL_WEIGHTS = {"CIFAR10": (0.05, 5, 0.01), "CIFAR100": (0.5, 20, 0.1)}
METHODS = {"nasty", "mildly_nasty", "possessive", "stingy", "perturb", "sdb"}
METHODS |= {"kd", "skeptical", "htc", "scm", "averager"}  # the newer attacks are in the benchmarks
COMMON = {"batch_size": 128, "num_epochs": 160, "num_workers": 4, "augmentation": 1, "cuda": 1}


def expected(experiment):
    """The expected params.json of `experiment`, with its keys in the released order."""
    dataset, folder, name = experiment.split("/")
    schedule, gamma, epochs, temperature, weight = SETTINGS[dataset]
    model = name.split("_")[1] if name.startswith(DEFENDED) else name.removesuffix("_key").replace("cnn", "net")
    if folder.startswith("datafree_"):
        return expected_data_free(dataset, folder, name)
    first = {"model_name": model, "learning_rate": 0.1, "schedule": schedule, "gamma": gamma}
    if model == "net":
        cnn = {"num_channels": 32, "dropout_rate": 0.0, "learning_rate": 0.001}
        first, epochs = {"model_name": model, **cnn, "schedule": [999], "gamma": 0.1}, 100
    params = {**first, **COMMON, "num_epochs": epochs, "dataset": DATASETS[dataset]}
    if folder == "baseline":
        return params
    kind, teacher = folder.split("_")[1:3]
    own = (
        f"{dataset}/baseline/{teacher}"
        if kind in ("normal", "stingy", "perturb")
        else f"{dataset}/{folder}/{kind}_{teacher}"
    )
    if not name.startswith(DEFENDED):
        resume = {"teacher_model": teacher, "teacher_resume": f"experiments/{own}/best_model.tar"}
        release = {"release": "sdb", "key_resume": f"experiments/{own}/key.tar"} if name.endswith("_key") else {}
        if kind == "stingy":
            temperature, release = 20, {"release": "stingy", "rho": 0.2 if dataset == "CIFAR10" else 0.1}
        if kind == "perturb":
            release = {"release": "perturb", "strength": 4}
        attack = {"method": "scm"} if kind == "nastier" else {}
        return params | resume | {"temperature": temperature, "alpha": 0.9} | release | attack
    adversary = folder.split("_adv_")[1] if "_adv_" in folder else teacher
    resume = {"adversarial_model": adversary.replace("cnn", "net")}
    original = f"kd_nasty_{adversary}/nasty_{adversary}" if kind == "nastier" else f"baseline/{adversary}"
    resume["adversarial_resume"] = f"experiments/{dataset}/{original}/best_model.tar"
    if kind == "possessive":
        weights = {"beta_target": 1, "beta_others": 1, "order": "reversed"}
        return params | resume | {"method": "possessive", "temperature": temperature} | weights
    if kind == "sdb":
        weights = {"mix": 0.5 if folder.endswith("_lambda_0.5") else 0.9, "weight": 1, "eta": 0.001}
        return params | {"num_epochs": 200} | resume | {"method": "sdb", "temperature": temperature} | weights
    mildly = {"method": "mildly_nasty", "variant": kind.replace("-", "_")} if kind in MILDLY_NASTY else {}
    return params | resume | {"temperature": temperature, "weight": weight} | mildly


def expected_data_free(dataset, folder, name):
    kind = folder.split("_")[1]
    teacher = "baseline/resnet34" if kind == "normal" else f"kd_{kind}_resnet34/{kind}_resnet34"
    default = (*SETTINGS[dataset][:2], 256, SETTINGS[dataset][2])
    schedule, gamma, batch_size, epochs = DATA_FREE_LENGTHS.get(name, default)
    first = {"model_name": "resnet18", "learning_rate": 0.1, "schedule": schedule, "gamma": gamma}
    params = {**first, **COMMON, "batch_size": batch_size, "num_epochs": epochs, "dataset": DATASETS[dataset]}
    teacher = f"experiments/{dataset}/{teacher}/best_model.tar"
    params |= {"teacher_model": "resnet34", "teacher_resume": teacher, "method": name} | DATA_FREE[name]
    weights = zip(("a_oh", "a_ie", "a_act"), DAFL_WEIGHTS[dataset], strict=True)
    return params | (dict(weights) if name == "dafl" else {})


def read(experiment):
    return json.loads((ROOT / experiment / "params.json").read_text())


def source(params, role):
    """The experiment that trains the network of `role`, "teacher" or "adversarial"."""
    return str(Path(params[f"{role}_resume"]).parent).removeprefix("experiments/")


def cells(table):
    """(experiment, published accuracy) of the cells of a table, without rows that have another teacher."""
    rows = [row for row in table["rows"] if "teacher" not in row]
    found = [row.get("cells") or [(experiment, None) for experiment in row["experiments"]] for row in rows]
    return [cell for row in found for cell in row if cell is not None]


def test_the_release_is_complete():
    assert len(RELEASED) == len(set(RELEASED)) == 60
    assert set(RELEASED) <= set(TREE)
    assert set(TREE) >= OTHERS


def test_params_follow_the_settings_table():
    for experiment, raw in TREE.items():
        assert list(raw.items()) == list(expected(experiment).items()), experiment


def test_resume_is_an_experiment_with_that_model():
    for experiment, raw in TREE.items():
        for role in ("adversarial", "teacher"):
            if f"{role}_resume" in raw:
                network = source(raw, role)
                assert Path(raw[f"{role}_resume"]).name == "best_model.tar", experiment
                assert TREE[network]["dataset"] == raw["dataset"], experiment
                assert TREE[network]["model_name"] == raw[f"{role}_model"], experiment
        if "key_resume" in raw:
            assert raw["key_resume"] == raw["teacher_resume"].replace("best_model", "key"), experiment
            assert TREE[network]["method"] == "sdb", experiment


def test_the_public_chain_starts_from_a_network_trained_against_the_nasty_teacher():
    """A "nastier" network is trained with the nasty loss and the nasty teacher. It teaches a sequence of students."""
    nasty = "CIFAR10/kd_nasty_resnet18/nasty_resnet18"
    nastier = "CIFAR10/kd_nastier_resnet18/nastier_resnet18"
    assert source(TREE[nastier], "adversarial") == nasty
    assert TREE[nastier] | {"adversarial_resume": TREE[nasty]["adversarial_resume"]} == TREE[nasty]
    student = TREE["CIFAR10/kd_nastier_resnet18/cnn"]
    assert source(student, "teacher") == nastier and student["method"] == "scm"


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_htc_has_its_control(matrix):
    """The control has the label smoothing to which htc is close at T = 50 and α = 0.9."""
    assert matrix["attacks"]["htc"]["temperature"] == 50
    assert {read(path)["alpha"] for path in matrix["defences"].values()} == {0.9}
    assert matrix["control"] == {"label_smoothing": 0.89}


def test_tables_and_tree_name_the_same_experiments():
    in_tables = {experiment for table in TABLES.values() for experiment, _ in cells(table)}
    teachers = (row["teacher"] for table in TABLES.values() for row in table["rows"] if "teacher" in row)
    in_tables |= {str(Path(teacher).parent) if teacher.endswith(".tar") else teacher for teacher in teachers}
    assert all((ROOT / experiment / "params.json").exists() for experiment in in_tables)
    rest = set(TREE) - in_tables - set(RELEASED) - OTHERS
    assert not rest


def test_rows_are_as_wide_as_the_columns():
    for name, table in TABLES.items():
        lengths = {len(row.get("cells") or row["experiments"]) for row in table["rows"]}
        assert lengths == {len(table["columns"])}, name
    for table in OF_PAPERS.values():
        assert any(column.endswith("teacher") for column in table["columns"]) == ("Table 5" not in table["source"])


def test_an_experiment_has_one_published_number():
    numbers = {}
    for experiment, accuracy in chain.from_iterable(map(cells, OF_PAPERS.values())):
        assert numbers.setdefault(experiment, accuracy) == accuracy
    assert all(accuracy is None or 1 < accuracy < 100 for accuracy in numbers.values())


def test_table1_has_13_experiments():
    assert len({experiment for experiment, _ in cells(TABLES["table1"])}) == 4 + 1 + 8


def test_table4_has_its_reference_rows():
    """The rows of the students alone and with a normal teacher are those of Table 1."""
    rows = [{row["name"]: row["cells"] for row in TABLES[table]["rows"]} for table in ("table1", "table4")]
    assert all(rows[1][name] == rows[0][name] for name in ("student baseline", "ResNet-18 normal"))


def test_datafree_has_what_was_published():
    """With normal teachers: DAFL as in Ma et al., DFAD, and DeepInversion as in Fang et al. (2022)."""
    rows = {row["name"]: row["cells"] for row in TABLES["datafree"]["rows"]}
    assert [cell[1] for cell in rows["CIFAR-10, normal"]] == [95.42, 92.49, 93.3, 93.26]
    assert [cell[1] for cell in rows["CIFAR-100, normal"]] == [76.97, 71.06, 67.7, 61.32]
    assert rows["CIFAR-10, possessive"][2][0] == "CIFAR10/datafree_possessive_resnet34/dfad"


def test_matrices_have_every_method():
    """Every method of a paper is in the matrices, except the data-free attacks, which are in table6 and datafree."""
    for matrix in MATRICES.values():
        students = [json.loads((ROOT / path / "params.json").read_text()) for path in matrix["defences"].values()]
        teachers = [
            json.loads((ROOT.parent / s["teacher_resume"]).with_name("params.json").read_text()) for s in students
        ]
        alone = json.loads((ROOT / matrix["alone"] / "params.json").read_text())
        assert all(s[key] == value for s in students for key, value in alone.items() if key != "precision")
        found = {changes.get("method", "kd") for changes in matrix["attacks"].values()}
        temperatures = {changes["temperature"] for name, changes in matrix["attacks"].items() if name != "htc"}
        assert temperatures == {4}  # the same attacker for every teacher, also if another T was published
        found |= {teacher.get("method", "nasty") for teacher in teachers if "adversarial_model" in teacher}
        found |= {student["release"] for student in students if "release" in student}
        assert found == METHODS
        assert {t["variant"] for t in teachers if "variant" in t} == {"half", "light", "light_deep"}


def test_templates_of_matrices():
    """A new defence replaces that of the template, a new release rule the plain rule. All other keys stay the same."""
    for name, matrix in MATRICES.items():
        defended, undefended = (read(matrix["template"][kind]) for kind in ("defended", "undefended"))
        own = {"teacher_resume"}
        assert all(defended[key] == undefended[key] for key in (defended.keys() | undefended.keys()) - own), name
        assert "adversarial_model" in read(source(defended, "teacher")), name
        assert read(source(undefended, "teacher")).get("method", "scratch") == "scratch", name
        assert {matrix["template"][kind] for kind in ("defended", "undefended")} <= set(matrix["defences"].values())
        assert next(iter(matrix["attacks"])) == "kd", name  # a new attack takes its keys without a default from kd


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_benchmarks_compare_students_that_differ_in_their_teacher_only(benchmark):
    alone = read(benchmark["alone"])
    students = [read(entry["student"]) for entry in benchmark["defences"].values()]
    assert all(student.get(key) == value for student in students for key, value in alone.items())
    assert next(iter(benchmark["defences"])) == "none" and benchmark["tuning_seed"] not in benchmark["seeds"]
    assert read(source(read(benchmark["template"]["undefended"]), "teacher")).get("method", "scratch") == "scratch"
    assert "adversarial_model" in read(source(read(benchmark["template"]["defended"]), "teacher"))


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)
def test_sweeps_start_from_experiments(sweep):
    for row in sweep["rows"]:
        changed = read(row["experiment"])
        if row["change"] == "teacher":
            changed = read(source(changed, "teacher"))
        assert sweep["key"] in params.schema(params.with_method(changed)), sweep["title"]


@pytest.mark.parametrize("name", [name for name in TARGETS if name.startswith("yardstick_")])
def test_the_yardstick_of_a_matrix_is_the_best_by_validation(name):
    sweep, matrix = load_table(name), TARGETS[name.replace("yardstick", "matrix")]
    [(_, cells)] = sweep.rows
    means = [mean(Recorded().summary(cell.spec, "validation").best.values()) for cell in cells]
    if None in means:
        pytest.skip("not measured yet")
    best = max(range(len(means)), key=lambda i: means[i])
    assert matrix["yardstick"] == {"label_smoothing": TARGETS[name]["values"][best]}
    assert matrix["alone"] == TARGETS[name]["rows"][0]["experiment"]
