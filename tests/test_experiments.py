"""The experiment tree against the settings table of the release and the papers' tables; needs no torch."""

import json
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "experiments"
DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "TinyImageNet": "tiny_imagenet"}
TREE = {
    path.parent.relative_to(ROOT).as_posix(): json.loads(path.read_text())
    for dataset in DATASETS
    for path in sorted((ROOT / dataset).rglob("params.json"))
}
PUBLISHED = json.loads((ROOT / "published.json").read_text())
SWEEPS = PUBLISHED["sweeps"]
TABLES = {name: table for name, table in PUBLISHED.items() if name != "sweeps"}

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
OMEGA_CHAIN = "CIFAR10/kd_nasty_resnet18_omega_0.004"  # the weight the paper prints; in no table
COMMON = {"batch_size": 128, "num_epochs": 160, "num_workers": 4, "augmentation": 1, "cuda": 1}


def expected(experiment):
    """What the rules say `experiment` holds, keys in the released order."""
    dataset, folder, name = experiment.split("/")
    schedule, gamma, epochs, temperature, weight = SETTINGS[dataset]
    model = name.removeprefix("nasty_").replace("cnn", "net")
    first = {"model_name": model, "learning_rate": 0.1, "schedule": schedule, "gamma": gamma}
    if model == "net":
        cnn = {"num_channels": 32, "dropout_rate": 0.0, "learning_rate": 0.001}
        first, epochs = {"model_name": model, **cnn, "schedule": [999], "gamma": 0.1}, 100
    params = {**first, **COMMON, "num_epochs": epochs, "dataset": DATASETS[dataset]}
    if folder == "baseline":
        return params
    kind, teacher = folder.split("_")[1:3]
    own = f"{dataset}/{folder}/nasty_{teacher}" if kind == "nasty" else f"{dataset}/baseline/{teacher}"
    if not name.startswith("nasty_"):
        resume = {"teacher_model": teacher, "teacher_resume": f"experiments/{own}/best_model.tar"}
        return params | resume | {"temperature": temperature, "alpha": 0.9}
    adversary = folder.split("_adv_")[1] if "_adv_" in folder else teacher
    resume = {"adversarial_model": adversary.replace("cnn", "net")}
    resume["adversarial_resume"] = f"experiments/{dataset}/baseline/{adversary}/best_model.tar"
    return params | resume | {"temperature": temperature, "weight": 0.004 if OMEGA_CHAIN in own else weight}


def cells(table):
    return [cell for row in table["rows"] for cell in row["cells"] if cell is not None]


def test_the_release_is_complete():
    assert len(RELEASED) == len(set(RELEASED)) == 60
    assert set(RELEASED) <= set(TREE)


@pytest.mark.parametrize("experiment", TREE)
def test_params_follow_the_settings_table(experiment):
    assert list(TREE[experiment].items()) == list(expected(experiment).items())


@pytest.mark.parametrize("experiment", TREE)
def test_resume_is_an_experiment_with_that_model(experiment):
    params = TREE[experiment]
    for role in ("adversarial", "teacher"):
        if f"{role}_resume" in params:
            source = params[f"{role}_resume"].removeprefix("experiments/").removesuffix("/best_model.tar")
            assert params[f"{role}_resume"] == f"experiments/{source}/best_model.tar"
            assert TREE[source]["dataset"] == params["dataset"]
            assert TREE[source]["model_name"] == params[f"{role}_model"]


def test_tables_and_tree_name_the_same_experiments():
    in_tables = {experiment for table in TABLES.values() for experiment, _ in cells(table)}
    assert in_tables <= set(TREE)
    rest = set(TREE) - in_tables - set(RELEASED)
    assert all(experiment.startswith(OMEGA_CHAIN + "/") for experiment in rest)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_rows_are_as_wide_as_the_columns(table):
    assert all(len(row["cells"]) == len(table["columns"]) for row in table["rows"])
    assert table["columns"].count("teacher") == ("Table 5" not in table["source"])


def test_an_experiment_has_one_published_number():
    numbers = {}
    for experiment, accuracy in chain.from_iterable(map(cells, TABLES.values())):
        assert numbers.setdefault(experiment, accuracy) == accuracy
    assert all(1 < accuracy < 100 for accuracy in numbers.values())


def test_table1_has_13_experiments():
    assert len({experiment for experiment, _ in cells(TABLES["table1"])}) == 4 + 1 + 8


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)
def test_sweeps_start_from_experiments(sweep):
    assert {*sweep["bases"], *sweep["students"]} <= set(TREE)
    assert all(sweep["key"] in TREE[base] or sweep["key"] == "subset_percent" for base in sweep["bases"])
    teachers = [f"experiments/{base}/best_model.tar" for base in sweep["bases"]]
    assert all(TREE[student]["teacher_resume"] in teachers for student in sweep["students"])
