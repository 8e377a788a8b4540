"""params.json: keys, their types and defaults, and runs with changed keys."""

import json

import pytest
import torch
from projects import ROOT, TINY, experiment, files, metrics, same_weights, script, train, with_teacher

from training import changes as key_changes
from training import params
from utils import checkpoint
from utils.errors import UserError

EXPERIMENTS = sorted(path.parent for path in (ROOT / "experiments").rglob("params.json"))
RELEASED = {
    "model_name": "resnet18",
    "learning_rate": 0.1,
    "schedule": [80, 120],
    "gamma": 0.1,
    "batch_size": 128,
    "num_epochs": 160,
    "num_workers": 4,
    "augmentation": 1,
    "cuda": 1,
    "dataset": "cifar10",
}


def check(**changes):
    raw = {name: value for name, value in (RELEASED | changes).items() if value is not None}
    return params.check(raw, "params.json")


def test_every_experiment_loads_unchanged():
    for folder in EXPERIMENTS:
        raw, loaded = json.loads((folder / "params.json").read_text()), vars(params.load(folder))
        changed = {name: loaded.get(name) for name in raw if loaded.get(name) != raw[name]}
        assert not changed, f"{folder}/params.json is loaded with {changed}"


def test_a_released_file_needs_no_new_key():
    defaults = {
        "method": "scratch",
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
        "subset_percent": 1.0,
        "precision": "fp32",
        "cuda_graph": False,
        "clip_grad_norm": 0.0,
        "seed": 0,
        "resume": None,
        "validation": 0.0,
        "test_at_end": False,
    }
    assert vars(check()) == RELEASED | defaults | {"augmentation": True, "cuda": True}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_name": "net"}, ("adam", 0.0)),
        ({"model_name": "mlp"}, ("adam", 0.0)),
        ({"model_name": "net", "optimizer": "sgd"}, ("sgd", 5e-4)),
        ({"optimizer": "adam"}, ("adam", 0.0)),
        ({"weight_decay": 0}, ("sgd", 0)),
        ({"model_name": "net", "weight_decay": 1e-3}, ("adam", 1e-3)),
    ],
)
def test_optimizer_and_weight_decay(changes, expected):
    checked = check(**changes)
    assert (checked.optimizer, checked.weight_decay) == expected


def test_the_old_name_of_a_key_is_read():
    assert check(compile=True).cuda_graph is True and not hasattr(check(compile=True), "compile")
    assert vars(check(compile=False)) == vars(check(cuda_graph=False)) == vars(check())
    assert key_changes.apply({"compile": True}, {"cuda_graph": False}) == {"cuda_graph": False}
    assert key_changes.apply({"cuda_graph": True}, {"compile": False}) == {"cuda_graph": False}
    for values in ((True, False), (True, True)):
        with pytest.raises(UserError, match='"compile" is the old name of "cuda_graph"'):
            check(**dict(zip(("compile", "cuda_graph"), values, strict=True)))


def test_the_default_method_is_no_change_and_is_not_written():
    raw = TINY | {"teacher_model": "net", "teacher_resume": "x.tar", "temperature": 4, "alpha": 0.9}
    before = dict(raw)
    assert key_changes.effective(raw, {"method": "kd"}) == {}
    assert key_changes.effective(raw, {"method": "htc", "alpha": 0.9}) == {"method": "htc"}
    assert "method" not in key_changes.apply(raw, {"alpha": 0.5}) and raw == before


def test_options_of_the_network_are_keys():
    assert (check(model_name="net").num_channels, check(model_name="net").dropout_rate) == (32, 0.0)
    assert check(model_name="net", num_channels=8, dropout_rate=0).num_channels == 8
    assert not hasattr(check(), "num_channels")


def test_the_method_follows_from_the_keys():
    source = {"temperature": 4, "adversarial_model": "net", "adversarial_resume": "x.tar"}
    assert check(**source, weight=0.1).method == "nasty"
    source = {"temperature": 4, "teacher_model": "net", "teacher_resume": "x.tar"}
    assert check(**source, alpha=1).method == "kd"
    assert check(method="kd", **source, alpha=0).alpha == 0


@pytest.mark.parametrize("changes", [{"learning_rate": 1}, {"schedule": []}, {"augmentation": False}, {"cuda": 0}])
def test_values_that_are_good(changes):
    assert check(**changes)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as error:
        check(momentun=0.9, gamma=None, num_epochs=0, dataset="cifar")
    lines = str(error.value).splitlines()
    assert lines[0].strip() == "params.json:" and len(lines) == 5
    for word in ('"momentun"; did you mean "momentum"?', 'missing key "gamma"', '"num_epochs"', 'mean "cifar10"?'):
        assert any(word in line for line in lines)


def test_a_key_that_is_there_is_suggested_too():
    with pytest.raises(UserError, match='"learning_rat"; did you mean "learning_rate"'):
        check(learning_rat=1)


@pytest.mark.parametrize(
    ("raw", "changes", "gone"),
    [
        ({"teacher_model": "net", "temperature": 4, "alpha": 0.9}, {"method": "dafl"}, {"temperature", "alpha"}),
        ({"teacher_model": "net", "temperature": 4, "alpha": 0.9}, {"method": "htc"}, set()),
        ({"teacher_model": "net", "temperature": 4}, {"method": "dafl", "temperature": 5}, set()),
        ({"model_name": "net", "num_channels": 8}, {"model_name": "preresnet8"}, {"num_channels"}),
        ({"teacher_model": "net", "release": "stingy", "rho": 0.2}, {"release": "logits"}, {"rho"}),
        ({"momentun": 0.9}, {"seed": 1}, set()),  # a misspelt key is not dropped
        ({"weight": 1}, {"method": "nastty"}, set()),
    ],
)
def test_the_keys_of_what_is_replaced_go_with_it(raw, changes, gone):
    assert key_changes.apply(raw, changes) == {k: v for k, v in (raw | changes).items() if k not in gone}


def test_no_suggestion_where_nothing_is_close():
    with pytest.raises(UserError) as error:
        check(zzz=1)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpha=0.5", ("alpha", 0.5)),
        ("schedule=[1, 2]", ("schedule", [1, 2])),
        ("method=kd", ("method", "kd")),
        ("resume=null", ("resume", None)),
        ("teacher_resume=a=b.tar", ("teacher_resume", "a=b.tar")),
    ],
)
def test_override(text, expected):
    assert key_changes.parse_change(text) == expected


def test_differences():
    old = vars(check())
    assert key_changes.differences(old, old) == []
    assert key_changes.differences(old, old | {"num_epochs": 161, "cuda": False, "num_workers": 9}) == []
    assert key_changes.differences(old, old | {"num_epochs": 159}) == ['"num_epochs": 160 in that run, 159 now']
    assert key_changes.differences(old, old | {"seed": 1, "gamma": 0.2}) == [
        '"gamma": 0.1 in that run, 0.2 now',
        '"seed": 0 in that run, 1 now',
    ]


def test_a_run_may_go_on_with_a_key_that_is_younger_than_it(tmp_path):
    """A missing key has its default value."""
    folder = experiment(tmp_path / "x", num_epochs=1)
    train(folder)
    state = torch.load(folder / "last_model.tar", weights_only=True)
    del state["params"]["momentum"]
    checkpoint.save(folder / "last_model.tar", state)
    assert "finished" in train(folder).out
    (folder / "params.json").write_text(json.dumps(TINY | {"num_epochs": 1, "momentum": 0.5}))
    done = script("train_scratch.py", "--save_path", folder)
    assert done.status == 2 and '"momentum": 0.9 in that run, 0.5 now' in done.err


# --set


def test_set_makes_a_folder_beside_and_leaves_the_experiment_as_it_is(tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=1)
    before = files(folder)
    train(folder, "--set", "seed=3", "schedule=[2, 5]")
    made = tmp_path / "x,schedule=2+5,seed=3"
    assert json.loads((made / "params.json").read_text()) == TINY | {"num_epochs": 1, "seed": 3, "schedule": [2, 5]}
    assert len(metrics(made)) == 1
    assert files(folder) == before
    again = train(folder, "--set", "seed=3", "--set", "schedule=[2, 5]")
    assert "finished" in again.out


def test_set_is_the_run_that_its_params_json_describes(tmp_path):
    train(experiment(tmp_path / "x"), "--set", "seed=3")
    train(experiment(tmp_path / "y", seed=3))
    assert same_weights(tmp_path / "x,seed=3/last_model.tar", tmp_path / "y/last_model.tar")


def test_set_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(experiment(tmp_path / "x", num_epochs=1))
    assert script("train_scratch.py", "--save_path", ".", "--set", "seed=1").status == 0
    assert (tmp_path / "x,seed=1/last_model.tar").is_file()


def test_every_key_changes_something_or_is_ignored(tmp_path, trained):
    """Each key in the first list changes the weights. Each key in the second list does not."""
    changed = {"seed": 1, "gamma": 0.5, "schedule": [], "augmentation": 0, "weight_decay": 0.1, "batch_size": 8}
    changed |= {"learning_rate": 0.002, "subset_percent": 0.4, "precision": "bf16", "label_smoothing": 0.1}
    changed |= {"dropout_rate": 0.5, "optimizer": "sgd", "clip_grad_norm": 1e-3}
    teacher = trained / "baseline/teacher"
    for name, value in changed.items():
        folder = experiment(tmp_path / name, **{name: value})
        train(folder)
        assert not same_weights(folder / "last_model.tar", teacher / "last_model.tar"), name
    for name, value in {"cuda": 0, "num_workers": 3}.items():
        folder = experiment(tmp_path / name, **{name: value})
        train(folder)
        assert same_weights(folder / "last_model.tar", teacher / "last_model.tar"), name


def test_temperature_and_alpha_change_a_student(tmp_path, trained):
    teacher = trained / "baseline/teacher"
    for name, value in {"temperature": 8, "alpha": 0.1}.items():
        train(experiment(tmp_path / name, **with_teacher(teacher, **{name: value})))
        assert not same_weights(tmp_path / name / "last_model.tar", trained / "kd_normal/student/last_model.tar")
