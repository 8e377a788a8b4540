"""Mistakes of users. Each prints one clear line or a list, ends with exit status 2, and overwrites nothing."""

import json
import os
import pickle
import shutil

import pytest
import torch
from projects import SCRIPTS, TINY, experiment, files, script, with_teacher

import model
from training import params
from utils.errors import UserError

CASES = {}  # name: function of (an empty folder, the trained experiments) -> (command line, words of the message)


def case(function):
    CASES[function.__name__] = function
    return function


def bad_params(name, *words, dataset="digits", **changes):
    """Add a case: a params.json with wrong values. It has a teacher if the values belong to a student."""
    student = {"alpha", "temperature", "teacher_model"} & changes.keys()

    def build(root, trained):
        keys = with_teacher(trained / "baseline/teacher") if student else {}
        folder = experiment(root / "x", **(keys | {"dataset": dataset} | changes))
        return ["train_kd.py" if student else "train_scratch.py", "--save_path", folder], ["x/params.json: ", *words]

    CASES[name] = build


bad_params("unknown key", 'unknown key "momentun"', 'did you mean "momentum"?', momentun=0.9)
bad_params("key of another method", 'unknown key "label_smoothing"', label_smoothing=0.1, alpha=0.5)
bad_params("key of another network", 'unknown key "num_channels"', model_name="mlp", dropout_rate=None)
bad_params("list of problems", "\n", '"seed"', '"gamma"', 'missing key "schedule"', seed=-1, gamma=0, schedule=None)
bad_params("string for number", '"num_epochs": must be a whole number, not "3"', num_epochs="3")
bad_params("fraction for count", '"batch_size": must be a whole number, not 1.5', batch_size=1.5)
bad_params("bool for count", '"batch_size": must be a whole number, not true', batch_size=True)
bad_params("number for list", '"schedule": must be a list of whole numbers, such as [75, 130], not 3', schedule=3)
bad_params("key of own images", '"image_size" is a key of the data set imagefolder only', image_size=48)
bad_params("list of strings", '"schedule": must be a list of whole numbers', schedule=["80"])
bad_params("number for bool", '"augmentation": must be true or false', augmentation=2)
bad_params("number for name", '"model_name": must be a string, not 18', model_name=18, num_channels=None)
bad_params("number for method", '"method": must be a string, not 3', method=3)
bad_params("list for data set", '"dataset": must be a string', dataset=["digits"])
bad_params("missing key", 'missing key "learning_rate"', learning_rate=None)
bad_params("missing key of a method", 'missing key "temperature"', temperature=None)
bad_params("no epochs", '"num_epochs": must be at least 1, not 0', num_epochs=0)
bad_params("negative epochs", '"num_epochs": must be at least 1, not -3', num_epochs=-3)
bad_params("alpha above 1", '"alpha": must be at least 0 and at most 1, not 1.5', alpha=1.5)
bad_params("alpha below 0", '"alpha": must be at least 0 and at most 1, not -0.1', alpha=-0.1)
bad_params("temperature 0", '"temperature": must be above 0, not 0', temperature=0)
bad_params("schedule out of order", '"schedule": must be epochs in rising order, not [2, 1]', schedule=[2, 1])
bad_params("schedule twice the same", '"schedule"', "rising order", schedule=[1, 1])
bad_params("schedule below 0", '"schedule"', schedule=[-1])
bad_params("no learning rate", '"learning_rate": must be above 0, not 0', learning_rate=0)
bad_params("learning rate NaN", '"learning_rate": must be finite, not NaN', learning_rate=float("nan"))
bad_params("learning rate infinite", '"learning_rate": must be finite, not Infinity', learning_rate=float("inf"))
bad_params("number beyond float", '"batch_size"', batch_size=10**400)
bad_params("negative clip", '"clip_grad_norm": must be at least 0, not -1', clip_grad_norm=-1)
bad_params(
    "both names of a key",
    '"compile" is the old name of "cuda_graph"; give only one of them',
    cuda_graph=True,
    compile=True,
)
bad_params("share of samples 0", '"subset_percent": must be ', "above 0", "at most 1", subset_percent=0)
bad_params("share of samples above 1", '"subset_percent": must be ', "above 0", "at most 1", subset_percent=90)
bad_params("precision", '"precision": must be one of fp32, bf16, auto, not "fp16"', precision="fp16")
bad_params("negative seed", '"seed": must be at least 0, not -1', seed=-1)
bad_params("no channels", "num_channels", "at least 1", num_channels=0)
bad_params("dropout 1", "dropout_rate", "below 1", dropout_rate=1)
bad_params("unknown network", 'unknown network "nett"', 'did you mean "net"?', "mobilenetv2", model_name="nett")
bad_params("depth that preresnet has not", "preresnet must be 6n+2", "not 21", model_name="preresnet21")
bad_params("unknown teacher", '"teacher_model": unknown network "nett"', 'did you mean "net"?', teacher_model="nett")
bad_params("unknown method", 'unknown method "nastty"', 'did you mean "nasty"?', "there are ", " kd, ", method="nastty")
bad_params("unknown data set", '"dataset": must be one of', 'not "cifar11"; did you mean "cifar10"?', dataset="cifar11")
bad_params("net with 64x64", "net takes 32x32 images, not 64x64", dataset="tiny_imagenet")
bad_params("teacher with 64x64", '"teacher_model": mlp takes 32x32', dataset="tiny_imagenet", teacher_model="mlp",
           model_name="resnet18", num_channels=None)  # fmt: skip


def bad_file(name, content, *words):
    """Add a case: a params.json with this content."""

    def build(root, trained):
        (root / "x").mkdir()
        (root / "x/params.json").write_bytes(content)
        return ["train_scratch.py", "--save_path", root / "x"], ["x/params.json: ", *words]

    CASES[name] = build


bad_file("malformed JSON", b'{\n  "model_name": "net",\n  "seed" 1\n}', "line 3, column 10")
bad_file("empty file", b"", "line 1, column 1")
bad_file("key twice", b'{"seed": 1, "gamma": 1, "seed": 2}', "seed", "more than once")
bad_file("no object", b"[1, 2]", "must be one object")
bad_file("no UTF-8", b'{"model_name": "\xff"}', "cannot be read")
bad_file("nothing but braces", b"{}", 'missing key "model_name"', 'missing key "dataset"')


def bad_teacher(name, make, *words):
    """Add a case: a student whose teacher's checkpoint is the file that `make(file)` writes."""

    def build(root, trained):
        (root / "released").mkdir()
        make(root / "released/best_model.tar")
        folder = experiment(root / "x", **with_teacher(root / "released"))
        return ["train_kd.py", "--save_path", folder], ["released/best_model.tar: ", *words]

    CASES[name] = build


class Evil:
    """An object that runs code and makes a file if it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def truncated(file):
    torch.save({"state_dict": model.build("net", 10).state_dict()}, file)
    file.write_bytes(file.read_bytes()[:5000])


def saved(content):
    return lambda file: torch.save(content, file)


def with_classes(name, num_classes):
    return saved({"epoch": 1, "state_dict": model.build(name, num_classes).state_dict(), "optim_dict": {}})


bad_teacher("teacher of another architecture", with_classes("mlp", 10), "weights do not fit a Net for 10 classes")
bad_teacher("teacher with more classes", with_classes("net", 100), "fc2.weight is (100, 128), not (10, 128)")
bad_teacher("truncated teacher", truncated, "not a checkpoint, or truncated")
bad_teacher("empty teacher", lambda file: file.touch(), "not a checkpoint, or truncated")
bad_teacher("text as teacher", lambda file: file.write_text("{}\n"), "not a checkpoint, or truncated")
bad_teacher("teacher with code", saved({"state_dict": {}, "x": Evil()}), "more than plain tensors", "not loaded")
bad_teacher("pickled code", lambda file: file.write_bytes(pickle.dumps(Evil(), 2)), "more than plain tensors")
bad_teacher("pickled code of our day", lambda file: file.write_bytes(pickle.dumps(Evil())))
bad_teacher("network as teacher", saved(torch.nn.Linear(1, 1)), "more than plain tensors")
bad_teacher("teacher is a tensor", saved(torch.zeros(3)), "not a checkpoint")
bad_teacher("teacher is a list", saved([1, 2]), "not a checkpoint")
bad_teacher("weights are a number", saved({"state_dict": 3}), "not a checkpoint")
bad_teacher("weights are a tensor", saved({"state_dict": torch.zeros(3)}), "not a checkpoint")
bad_teacher("weights are numbers", saved({"state_dict": {"fc1.weight": 1}}), "not a checkpoint")
bad_teacher("no weights", saved({}), "released/best_model.tar")


def odd(change=None, **own):
    """A checkpoint of a good network in which `change` replaces each tensor, with the items `own`."""
    weights = model.build("net", 10).state_dict()
    weights = {name: change(value) for name, value in weights.items()} if change else weights
    return saved({"epoch": 1, "state_dict": weights} | own)


NUMBERED = dict(enumerate(model.build("net", 10).state_dict().values()))

bad_teacher("params are a list", odd(params=[1]), '"params" is not a dictionary of JSON values')
bad_teacher("params are null", odd(params=None), '"params" is not a dictionary of JSON values')
bad_teacher("params with numbers as names", odd(params={1: 2}), '"params" is not a dictionary of JSON values')
bad_teacher("params with a tensor", odd(params={"seed": torch.ones(1)}), '"params" is not a dictionary of JSON values')
bad_teacher(
    "channels in words", odd(params={"num_channels": "x"}), 'no net can be built with its params {"num_channels"'
)
bad_teacher("channels null", odd(params={"num_channels": None}), "no net can be built with its params")
bad_teacher("channels in a list", odd(params={"num_channels": [4]}), "no net can be built with its params")
bad_teacher("far too many channels", odd(params={"num_channels": 10**9}), "released/best_model.tar: ")
bad_teacher("channels beyond 64 bits", odd(params={"num_channels": 10**30}), "no net can be built with its params")
bad_teacher("made by an odd network", odd(params={"model_name": [1], "num_channels": 4}), "weights do not fit a Net")
bad_teacher("whole numbers as names", saved({"state_dict": NUMBERED}), "0: the name of weights must be a string")
bad_teacher("sparse weights", odd(torch.Tensor.to_sparse), "conv1.weight: is not a plain tensor")
bad_teacher("weights without values", odd(lambda value: value.to("meta")), "conv1.weight: has no values")
bad_teacher("complex weights", odd(lambda value: value.to(torch.complex64)), "conv1.weight: has complex numbers")
bad_teacher("weights NaN", odd(lambda value: value * float("nan")), "conv1.weight: has values that are NaN or infinite")
bad_teacher("weights beyond float32", odd(lambda value: value.double() + 1e300), "has values that are NaN or infinite")
bad_teacher("digests are odd", odd(digests=[1]), "damaged: its digest differs")


@case
def missing_teacher(root, trained):
    teacher = experiment(root / "my teacher")
    folder = experiment(root / "x", **with_teacher(teacher))
    command = f"make it with: python train_scratch.py --save_path '{teacher}'"
    return ["train_kd.py", "--save_path", folder], [f"{teacher}/best_model.tar: there is no such checkpoint", command]


@case
def missing_adversary(root, trained):
    teacher = experiment(root / "nasty", **with_teacher(root / "nowhere", "adversarial"))
    return ["train_nasty.py", "--save_path", teacher], ["nowhere/best_model.tar: there is no such checkpoint"]


def flags(name, argv, *words):
    """Add a case: a command line for a valid experiment. {x} and {trained} stand for paths."""

    def build(root, trained):
        folder = experiment(root / "x", **(with_teacher(trained / "baseline/teacher") if "kd" in argv[0] else {}))
        with_classes("mlp", 10)(root / "mlp.tar")
        filled = [part.format(x=folder, root=root, trained=trained) for part in argv]
        return [filled[0], "--save_path", folder, *filled[1:]], words

    CASES[name] = build


flags("--set without value", ["train_scratch.py", "--set", "seed"], "--set seed: must be key=value")
flags("--set another kind", ["train_kd.py", "--set", "method=scratch"], "is an experiment for train_scratch.py")
flags("--set unknown key", ["train_scratch.py", "--set", "sed=1"], 'unknown key "sed"', 'did you mean "seed"?')
flags("--set wrong value", ["train_scratch.py", "--set", "seed=one"], '"seed": must be a whole number, not "one"')
flags("--resume nothing", ["train_scratch.py", "--resume", "{root}/no.tar"], "no.tar: there is no such checkpoint")
flags("--resume another network", ["train_scratch.py", "--resume", "{root}/mlp.tar"], "mlp.tar: weights do not fit")
flags("--teacher_resume nothing", ["train_kd.py", "--teacher_resume", "{root}/no.tar"], "no.tar: there is no such")
flags("--evaluate before training", ["train_scratch.py", "--evaluate"], "x/best_model.tar: there is no such checkpoint",
      "make it with: python train_scratch.py --save_path")  # fmt: skip
flags("--evaluate a folder", ["train_scratch.py", "--evaluate", "{x}"], "x: ")
flags("--gpu_id several", ["train_scratch.py", "--gpu_id", "0", "1"], "takes one GPU",
      "torchrun --nproc_per_node=2 train_scratch.py --save_path ", "/x")  # fmt: skip
flags("--gpu_id one", ["train_scratch.py", "--gpu_id", "one"], "--gpu_id", "'one'")
flags("wrong script", ["train_nasty.py"], "x: is an experiment for train_scratch.py: python train_scratch.py")


@case
def no_folder(root, trained):
    return ["train_scratch.py", "--save_path", root / "nowhere"], ["nowhere/params.json: there is no such file"]


@case
def missing_data_set(root, trained):
    folder = experiment(root / "x", dataset="cifar10")
    argv = ["train_scratch.py", "--save_path", folder, "--data_dir", root / "data"]
    return argv, [str(root / "data"), "is missing", "add --download"]


@case
def too_few_images(root, trained):
    folder = experiment(root / "x", subset_percent=1e-4)
    return ["train_scratch.py", "--save_path", folder], ["subset_percent 0.0001 leaves 0 of 224 training images"]


@case
def one_image_in_the_last_batch(root, trained):
    return ["train_scratch.py", "--save_path", experiment(root / "x", batch_size=43)], [
        "batch_size 43: with 44 training images, the last batch has size 1,",
        "batch norm needs at least 2",
    ]


@case
def log_that_cannot_be_written(root, trained):
    folder = experiment(root / "x")
    (folder / "training.log").mkdir()  # also works for the user root, who may write to every folder
    return ["train_scratch.py", "--save_path", folder], ["x: cannot be written"]


@case
def folder_that_cannot_be_written(root, trained):
    if os.geteuid() == 0:
        pytest.skip("to root every folder is open")
    folder = experiment(root / "x")
    folder.chmod(0o555)
    return ["train_scratch.py", "--save_path", folder], ["x: cannot be written"]


@case
def set_where_no_folder_can_be(root, trained):
    folder = experiment(root / "x")
    (root / "x,seed=1").write_text("in the way")
    return ["train_scratch.py", "--save_path", folder, "--set", "seed=1"], ["x,seed=1", "cannot be written"]


@case
def set_in_the_folder_of_another_experiment(root, trained):
    folder = experiment(root / "x")
    experiment(root / "x,seed=1", seed=1, gamma=0.5)
    return ["train_scratch.py", "--save_path", folder, "--set", "seed=1"], [
        "x,seed=1",
        '"gamma": 0.5 in that run, 0.1 now',
    ]


def used_folder(name, spoil, *words):
    """Add a case: a folder with the results of a run, which `spoil(folder)` changes."""

    def build(root, trained):
        folder = root / "x"
        shutil.copytree(trained / "kd_normal/student", folder)
        spoil(folder)
        return ["train_kd.py", "--save_path", folder], ["x", *words]

    CASES[name] = build


def rewrite(**changes):
    def spoil(folder):
        raw = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps(raw | changes))

    return spoil


def own(make):
    return lambda folder: (rewrite(num_epochs=3)(folder), make(folder / "last_model.tar"))


used_folder(
    "other parameters",
    rewrite(alpha=0.5, seed=1),
    "other",
    '"alpha": 0.9 in that run, 0.5 now',
    '"seed": 0 in that run',
)
used_folder("fewer epochs", rewrite(num_epochs=1), '"num_epochs": 2 in that run, 1 now')
used_folder("own checkpoint truncated", own(truncated), "last_model.tar: not a checkpoint, or trunc", "move it away")
used_folder("own checkpoint with code", own(saved({"x": Evil()})), "last_model.tar: holds more than plain tensors")
used_folder(
    "checkpoint of the released code",
    own(with_classes("net", 10)),
    "last_model.tar",
    "not a checkpoint of this",
)


def own_with(**changes):
    """The run's own checkpoint with other items, and without its digests."""

    def change(file):
        content = torch.load(file, weights_only=True)
        torch.save({name: value for name, value in (content | changes).items() if name != "digests"}, file)

    return own(change)


for item, odd_value in {
    "params": [None, [1], {1: 2}, {"seed": torch.ones(1)}],
    "epoch": ["1", None, torch.ones(2)],
    "best": [None, (1,), ("a", "b"), (torch.ones(2), 1.0)],
    "optim_dict": [None, [1]],
    "origins": [[1]],
    "extra": [3],
}.items():
    for value in odd_value:
        used_folder(
            f"own {item} {value}"[:40], own_with(**{item: value}), "last_model.tar: not a checkpoint of this project"
        )
used_folder("no last_model.tar", lambda folder: (folder / "last_model.tar").unlink(), "no last_model.tar", "move")


@case
def other_teacher_than_before(root, trained):
    shutil.copytree(trained / "baseline/teacher", root / "teacher")
    folder = experiment(root / "x", **with_teacher(root / "teacher"))
    assert script("train_kd.py", "--save_path", folder).status == 0
    shutil.copy(trained / "kd_nasty/nasty/best_model.tar", root / "teacher")
    rewrite(num_epochs=3)(folder)
    return ["train_kd.py", "--save_path", folder], [
        "x: the weights in ",
        "best_model.tar have changed since this run",
    ]


def reproduce(name, argv, *words):
    """Add a case: a command line. {root} stands for a folder with one valid experiment, x."""

    def build(root, trained):
        experiment(root / "x")
        (root / "empty").mkdir()
        return [part.format(root=root) for part in argv], words

    CASES[name] = build


reproduce("unknown target", ["reproduce.py", "tabel1"], 'unknown target "tabel1"', "table2, table3", 'mean "table1"?')
reproduce("no jobs", ["reproduce.py", "{root}", "--jobs", "0"], "--jobs: must be at least 1, not 0")
reproduce("negative jobs", ["reproduce.py", "{root}", "--jobs", "-2"], "--jobs: must be at least 1, not -2")
reproduce("jobs in words", ["reproduce.py", "{root}", "--jobs", "two"], "--jobs", "'two'")
reproduce("seed in words", ["reproduce.py", "{root}", "--seeds", "0", "one"], "--seeds", "'one'")
reproduce("seed below 0", ["reproduce.py", "{root}", "--seeds", "-1"], "seed", "-1")
reproduce("folder without experiments", ["reproduce.py", "{root}/empty"], "empty: contains no experiment")
reproduce("table of nothing", ["results.py", "{root}/empty"], "empty: contains no experiment")
reproduce("unknown table", ["results.py", "omga"], 'unknown target "omga"', 'did you mean "omega"?')
reproduce("unknown format", ["results.py", "{root}", "--format", "xml"], "--format", "'xml'", "csv")
reproduce("html of a folder", ["results.py", "{root}", "--format", "html"], "--format html: ", " is not a benchmark")


@case
def cycle(root, trained):
    experiment(root / "a", **with_teacher(root / "b"))
    experiment(root / "b", **with_teacher(root / "a"))
    return ["reproduce.py", root], ["circular dependency", f"{root}/a -> {root}/b -> {root}/a"]


@case
def missing_experiment(root, trained):
    experiment(root / "x", **with_teacher(root / "nowhere"))
    return ["reproduce.py", root], [f"{root}/x/params.json", '"teacher_resume"', f"{root}/nowhere has no params.json"]


@case
def plan_with_a_missing_key(root, trained):
    experiment(root / "good")
    experiment(root / "x", num_epochs=None)
    return ["reproduce.py", root], [f"{root}/x/params.json", 'missing key "num_epochs"']


@case
def plan_with_an_unknown_key(root, trained):
    experiment(root / "good")
    experiment(root / "x", momentun=0.9)
    return ["reproduce.py", root], [f"{root}/x/params.json", 'unknown key "momentun"']


@case
def table_with_a_missing_key(root, trained):
    experiment(root / "x", num_epochs=None)
    return ["results.py", root], [f"{root}/x/params.json", "num_epochs"]


@pytest.mark.filterwarnings("error")  # a warning would be an additional line
@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(name, tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (script_name, *argv), words = CASES[name](tmp_path, trained)
    before = files(tmp_path) | files(trained)
    done = script(script_name, *argv)
    assert done.status == 2, done
    message = done.err.strip()
    if message.startswith("usage: "):
        message = message.splitlines()[-1]
    for word in words:
        assert word in message
    # One line, or one line and a list
    assert len(message.splitlines()) == 1 or message.splitlines()[1].startswith("  ")
    assert not done.out
    assert files(tmp_path) | files(trained) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim_dict": {}}, "its state does not fit this run: "),
        ({"optim_dict": {"state": {0: {"exp_avg": 3}}, "param_groups": [{"params": [0]}]}}, "its state does not fit"),
        ({"state_dict": {}}, "weights do not fit a Net"),
        ({"state_dict": NUMBERED}, "0: the name of weights must be a string"),
    ],
    ids=["no groups", "odd state", "no weights", "numbers as names"],
)
def test_a_state_that_does_not_fit_the_run_is_one_line(changes, words, trained, tmp_path):
    """It is noticed when the network has been built, so the log has begun."""
    shutil.copytree(trained / "kd_normal/student", tmp_path / "x")
    own_with(**changes)(tmp_path / "x")
    before = (tmp_path / "x/last_model.tar").read_bytes()
    done = script("train_kd.py", "--save_path", tmp_path / "x")
    assert done.status == 2 and len(done.err.splitlines()) == 1 and f"x/last_model.tar: {words}" in done.err
    assert (tmp_path / "x/last_model.tar").read_bytes() == before


LONG = "a" * 5000


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": LONG},
        {"batch_size": 10**4000},
        {"precision": LONG},
        {"schedule": [1] * 5000},
        {"schedule": [LONG]},
        {"model_name": LONG},
        {"model_name": [LONG]},
        {"method": LONG},
        {"method": [LONG]},
        {"dataset": LONG},
        {LONG: 1},
    ],
    ids=lambda changes: f"{min(changes, key=len)[:20]} {type(next(iter(changes.values()))).__name__}",
)
def test_long_values_are_cut(changes):
    with pytest.raises(UserError) as error:
        params.check(TINY | changes, "params.json")
    assert len(str(error.value)) < 700 and next(iter(changes))[:20] in str(error.value)


def test_a_long_value_of_set_is_cut(tmp_path):
    for text in (LONG, f"seed={LONG}", f"{LONG}=1"):
        done = script("train_scratch.py", "--save_path", experiment(tmp_path / text[:1] / text[-1:]), "--set", text)
        assert done.status == 2 and len(done.err) < 700 + len(str(tmp_path))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_good_ones_are_good(name, trained):
    """Without the mistake the command succeeds. So the cases above fail because of the mistake."""
    assert (trained / name / "best_model.tar").is_file()
    assert TINY["num_epochs"] == 2
