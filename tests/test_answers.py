"""The answers of a teacher: labels only, the number of queries, and stored answers."""

import json
import threading

import pytest
import torch
from processes import command
from projects import copy_code, experiment, metrics, same_weights, script, train, with_teacher
from test_methods import EXAMPLES, SMALL

import method
from method.datafree import DataFree
from method.release import WITHHELD, LabelOnly, Release
from training import answers, params
from training.zoo import Zoo
from utils import checkpoint, data

DIGITS = data.DATASETS["digits"]
WITH_IMAGES = [name for name in method.names()["attack"] if not issubclass(method.find(name), DataFree)]


@pytest.fixture
def teacher(tmp_path, trained):
    """A copy of a trained teacher. Tests may store answers beside it."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    content = torch.load(trained / "baseline/teacher/best_model.tar", weights_only=True)
    torch.save(content, folder / "best_model.tar")
    return folder


def student(folder, teacher, **changes):
    return experiment(folder, **with_teacher(teacher) | changes)


def stored(teacher):
    return sorted((teacher / "answers").rglob("*.tar"))


# Labels only


class Fixed(Release):
    """A release rule that answers with given logits."""

    def __init__(self, logits):
        super().__init__(None, None)
        self.logits = logits

    def __call__(self, images, with_features=False):
        return self.logits

    def answer(self, logits):
        return -logits


def test_label_only_by_hand():
    rule = LabelOnly(Fixed(torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 4.0]])))
    expected = torch.tensor([[WITHHELD, 0.0, WITHHELD], [0.0, WITHHELD, WITHHELD]])
    assert torch.equal(rule(None), expected)
    assert torch.equal(rule.answer(-rule.rule.logits), expected)  # the label of the answer that the inner rule gives
    assert torch.equal(rule(None).softmax(1), torch.tensor([[0.0, 1, 0], [1, 0, 0]]))


def test_label_only_after_stingy_is_the_label_of_the_plain_rule(teacher):
    """`stingy` keeps the highest logits, so it does not change the label. `reverse_sigmoid` changes the label."""
    images = torch.randn(20, 3, 32, 32)
    zoo, found = Zoo(DIGITS, torch.device("cpu")), {}
    for release, keys in (("logits", {}), ("stingy", {"rho": 0.2})):
        folder = student(teacher.parent / release, teacher, release=release, answers="label", **keys)
        found[release] = method.find("kd")(params.load(folder), zoo).teacher(images)
        assert (found[release] == 0).sum(1).eq(1).all() and (found[release] == WITHHELD).sum(1).eq(9).all()
    assert torch.equal(found["logits"], found["stingy"])
    network = zoo.frozen("net", teacher / "best_model.tar")
    assert torch.equal(found["logits"].argmax(1), network(images).argmax(1))


def test_recovery_knows_the_rule_behind_both_wrappers(tmp_path):
    rule = Fixed(torch.tensor([[1.0, 2.0]]))
    stored_rule = answers.StoredAnswers(rule, tmp_path, "digest", 0, print)
    logits = torch.tensor([[3.0, 1.0]])
    assert torch.equal(stored_rule.answer(logits), -logits)
    assert torch.equal(LabelOnly(stored_rule).answer(logits), torch.tensor([[WITHHELD, 0.0]]))


# Queries


def test_queries_are_the_images_that_the_teacher_answers(teacher, tmp_path):
    """There are 44 queries per epoch, with computed or stored answers, and none for a student without a teacher."""
    for name in ("first", "second"):
        folder = student(tmp_path / name, teacher)
        train(folder)
        assert [line["queries"] for line in metrics(folder)] == [44, 44]
    train(experiment(tmp_path / "alone"))
    assert all("queries" not in line for line in metrics(tmp_path / "alone"))


def test_queries_of_a_data_free_attack(teacher, tmp_path):
    keys = {"method": "dafl", "temperature": None, "alpha": None, **SMALL["dafl"], "num_epochs": 1}
    folder = student(tmp_path / "x", teacher, **keys)
    assert script("train_kd.py", "--save_path", folder).status == 0
    assert metrics(folder)[0]["queries"] == SMALL["dafl"]["iterations_per_epoch"] * 16
    assert not stored(teacher)  # an attack without data uses no images of the loader


# Stored answers


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_answers_change_no_bit(name, teacher, tmp_path):
    """One student stores answers, one reads them, and one does neither. All have the same weights."""
    own = {field for field in method.find(name).Params.__dataclass_fields__}
    keys = {key: EXAMPLES[key] if key in own else None for key in ("temperature", "alpha")}
    keys |= {"kd_delay": 0} if name == "skeptical" else {}
    for folder, limit in (("plain", 0), ("writes", None), ("reads", None)):
        student(tmp_path / folder, teacher, method=name, stored_answers_gib=limit, **keys)
        done = script("train_kd.py", "--save_path", tmp_path / folder)
        assert done.status == 0, done.err
        if folder == "plain":
            assert not stored(teacher)
        assert same_weights(tmp_path / folder / "last_model.tar", tmp_path / "plain/last_model.tar")
        assert metrics(tmp_path / folder) == metrics(tmp_path / "plain")
    assert len(stored(teacher)) == 2


@pytest.mark.parametrize("keys", [{"answers": "label"}, {"release": "stingy", "rho": 0.2}, {"precision": "bf16"}])
def test_answers_change_no_bit_with(keys, teacher, tmp_path):
    for folder, limit in (("plain", 0), ("writes", None), ("reads", None)):
        train(student(tmp_path / folder, teacher, stored_answers_gib=limit, **keys))
        assert same_weights(tmp_path / folder / "last_model.tar", tmp_path / "plain/last_model.tar")
    assert len(stored(teacher)) == 2


def test_stored_answers_are_read(teacher, tmp_path, monkeypatch):
    train(student(tmp_path / "a", teacher))
    asked = []
    monkeypatch.setattr(Release, "__call__", lambda self, images, **_: asked.append(len(images)))
    train(student(tmp_path / "b", teacher, alpha=0.5))  # None as an answer would fail
    assert asked == []


def test_labels_and_logits_share_what_is_stored(teacher, tmp_path):
    train(student(tmp_path / "a", teacher))
    train(student(tmp_path / "b", teacher, answers="label"))
    assert len(stored(teacher)) == 2


@pytest.mark.parametrize(
    "keys",
    [{"seed": 1}, {"batch_size": 8}, {"release": "stingy", "rho": 0.2}, {"augmentation": 0}, {"validation": 0.2}],
    ids=lambda keys: next(iter(keys)),
)
def test_answers_to_other_images_are_others(keys, teacher, tmp_path):
    train(student(tmp_path / "a", teacher, num_epochs=1))
    train(student(tmp_path / "b", teacher, num_epochs=1, **keys))
    assert len(stored(teacher)) == len({path.parent for path in stored(teacher)}) == 2


def test_answers_of_another_teacher_are_not_read(teacher, tmp_path, trained):
    """Other weights at the same path have another digest, so their stored answers are not read."""
    train(student(tmp_path / "a", teacher))
    content = torch.load(trained / "kd_nasty/nasty/best_model.tar", weights_only=True)
    torch.save(content, teacher / "best_model.tar")
    train(student(tmp_path / "b", teacher))
    train(student(tmp_path / "c", teacher, stored_answers_gib=0))
    assert same_weights(tmp_path / "b/last_model.tar", tmp_path / "c/last_model.tar")
    assert not same_weights(tmp_path / "b/last_model.tar", tmp_path / "a/last_model.tar")
    assert len(stored(teacher)) == 4


def test_answers_of_other_code_are_not_read(teacher, tmp_path):
    """Code that a release rule uses is part of the digest: answers that were stored before a change are not read."""
    code = copy_code(tmp_path / "code")
    folders = [student(tmp_path / name, teacher, num_epochs=1, release="stingy", rho=0.2) for name in "abc"]
    for folder in folders:
        done = command(code, "train_kd.py", "--save_path", folder)
        assert done.status == 0, done.err
        if folder == folders[1]:
            with open(code / "method/release.py", "a") as source:
                source.write("# changed\n")
    assert len({path.parent for path in stored(teacher)}) == len(stored(teacher)) == 2


def test_answers_of_a_changed_function_are_not_read(teacher, tmp_path):
    """The file of a network of other code is part of the digest, because a change may keep the weights as they are."""
    code = "from torch import nn\nclass Network(nn.Linear):\n    def forward(self, x):\n"
    torch.save(torch.nn.Linear(3072, 10).state_dict(), teacher / "best_model.tar")
    for scale in (1, 5):
        (tmp_path / "other.py").write_text(
            f"{code}        return {scale} * super().forward(x.flatten(1))\n"
            "def network(classes):\n    return Network(3072, classes)\n"
        )
        train(student(tmp_path / str(scale), teacher, teacher_model=f"{tmp_path / 'other.py'}:network", num_epochs=1))
    assert len({path.parent for path in stored(teacher)}) == len(stored(teacher)) == 2


def damage(path, kind):
    content = torch.load(path, weights_only=True)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another digest":
        checkpoint.save(path, content | {"digest": "0" * 32})
    else:
        checkpoint.save(path, content | {"answers": content["answers"][:-1]})


@pytest.mark.parametrize("kind", ["truncated", "empty", "another digest", "too few"])
def test_a_damaged_file_is_named_and_written_anew(kind, teacher, tmp_path):
    train(student(tmp_path / "a", teacher))
    path = stored(teacher)[0]
    honest = torch.load(path, weights_only=True)
    damage(path, kind)
    done = train(student(tmp_path / "b", teacher))
    assert done.out.count("the teacher computes them instead") == 1 and "epoch0001.tar" in done.out
    assert same_weights(tmp_path / "a/last_model.tar", tmp_path / "b/last_model.tar")
    again = torch.load(path, weights_only=True)
    assert torch.equal(again["answers"], honest["answers"]) and again["digest"] == honest["digest"]


def test_a_limit_on_the_size(teacher, tmp_path):
    """The answers of an epoch are 44 · 10 · 4 bytes and a header. With room for one epoch, only one is stored."""
    train(student(tmp_path / "a", teacher))
    size = stored(teacher)[0].stat().st_size
    for path in stored(teacher):
        path.unlink()
    train(student(tmp_path / "b", teacher, stored_answers_gib=(size + 100) / 2**30))
    assert [path.name for path in stored(teacher)] == ["epoch0001.tar"]
    assert same_weights(tmp_path / "a/last_model.tar", tmp_path / "b/last_model.tar")


def test_a_disk_that_is_full_costs_only_time(teacher, tmp_path, monkeypatch):
    save = checkpoint.save

    def full(path, content, **options):
        if "answers" in str(path):
            raise OSError(28, "No space left on device")
        save(path, content, **options)

    monkeypatch.setattr(checkpoint, "save", full)
    done = train(student(tmp_path / "a", teacher))
    assert done.out.count("Answers are not stored: ") == 2 and not stored(teacher)


def test_two_students_write_at_the_same_time(teacher):
    """The last student replaces a complete file by a complete file with the same answers."""
    made = [writer(teacher) for _ in range(2)]
    values = torch.randn(2000, 10)
    threads = [threading.Thread(target=lambda one=one: [one.write(0, values) for _ in range(20)]) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (teacher / "answers/d").iterdir()] == ["epoch0001.tar"]
    assert torch.equal(torch.load(stored(teacher)[0], weights_only=True)["answers"], values)


def writer(teacher):
    return answers.StoredAnswers(Fixed(None), teacher / "answers", "d", 2**30, print)


def test_an_epoch_that_was_cut_is_not_stored(teacher, tmp_path):
    rule = writer(teacher)

    class Loader:
        epoch, split = 0, torch.zeros(4)

        def __iter__(self):
            return iter([(torch.zeros(2), None), (torch.ones(2), None)])

    rule.rule.logits = torch.zeros(2, 10)
    for images, _ in rule.batches(Loader()):
        rule(images)
        break
    for number, (images, _) in enumerate(rule.batches(Loader())):
        if number:
            rule(images)  # the first batch is not answered
    assert not stored(teacher)
    for images, _ in rule.batches(Loader()):
        rule(images), rule(images)  # answered twice, stored once
    assert len(torch.load(stored(teacher)[0], weights_only=True)["answers"]) == 4


def test_a_rule_that_answers_at_random_is_not_stored(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(Release, "deterministic", False)
    train(student(tmp_path / "a", teacher))
    assert not stored(teacher)


def test_the_key_changes_no_run(teacher, tmp_path):
    folder = student(tmp_path / "x", teacher)
    train(folder)
    raw = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(raw | {"stored_answers_gib": 0}))
    assert "finished" in train(folder).out
