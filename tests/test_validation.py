"""The keys `validation` and `test_at_end`: which images train the network, choose the epoch, and are scored."""

import json

import projects
import pytest
import torch
from projects import TINY, experiment, files, metrics, same_weights, script, train, with_teacher

from study import ledger, publish
from training import engine, params, spec
from training import experiment as runs
from utils import data
from utils import metrics as measure

HELD_BACK = {"validation": 0.2, "test_at_end": True}


def load(validation=0.0, share=1.0):
    return data.load("digits", "", torch.device("cpu"), share, validation=validation)


def rows(split):
    """A sorted list of the images of a split with their labels, as bytes."""
    return sorted(
        image.numpy().tobytes() + bytes([label]) for image, label in zip(split.images, split.labels, strict=True)
    )


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_validation_images_are_held_back_from_those_that_are_used(share):
    all_used, dataset = load(share=share), load(0.2, share)
    assert len(dataset.validation) == round(0.2 * len(all_used.train)) > 0 == len(all_used.validation)
    assert sorted(rows(dataset.train) + rows(dataset.validation)) == rows(all_used.train)
    assert rows(dataset.test) == rows(all_used.test)
    assert f"{len(dataset.train)} training, {len(dataset.validation)} validation, " in dataset.summary


def test_a_larger_share_holds_back_other_images_of_the_same_set():
    """The validation images are the end of one fixed order, so a larger share includes those of a smaller share."""
    small, large = load(0.1), load(0.3)
    assert set(rows(small.validation)) <= set(rows(large.validation)) and len(large.validation) == 67


class Seen(data.Loader):
    """Stores the labels and the split of every batch that any loader yields."""

    def __iter__(self):
        Seen.splits.append((self.split, self.shuffle))
        return super().__iter__()


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setattr(data, "Loader", Seen)
    monkeypatch.setattr(Seen, "splits", [], raising=False)
    return Seen.splits


def test_test_images_are_read_once_after_the_last_epoch(seen, tmp_path):
    train(experiment(tmp_path / "x", num_epochs=3, **HELD_BACK))
    dataset = load(0.2, TINY["subset_percent"])
    kinds = {tuple(rows(getattr(dataset, kind))): kind for kind in ("train", "validation", "test")}
    order = [(kinds[tuple(rows(split))], shuffled) for split, shuffled in seen]
    assert order == [("train", True), ("validation", False)] * 3 + [("test", False)]


def test_without_test_at_end_test_images_are_not_read(seen, tmp_path):
    folder = experiment(tmp_path / "x", validation=0.2)
    train(folder)
    assert len(seen) == 4 and all(len(split) < 50 for split, _ in seen) and not (folder / "test.json").exists()
    assert all("test" not in line and line["validation"].keys() == {"acc", "loss"} for line in metrics(folder))


def test_test_json_holds_the_scores_of_the_best_epoch_by_validation(tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=4, learning_rate=0.1, subset_percent=1.0, **HELD_BACK)
    train(folder)
    found = json.loads((folder / "test.json").read_text())
    accuracies = [line["validation"]["acc"] for line in metrics(folder)]
    best = max(range(4), key=lambda i: (accuracies[i], i)) + 1
    assert best < 4
    content = torch.load(folder / "best_model.tar", weights_only=True)
    assert found["epoch"] == best == content["epoch"]
    checked = params.load(folder)
    network = runs.Zoo(data.DATASETS["digits"], torch.device("cpu")).frozen("net", folder / "best_model.tar")
    scores = measure.evaluate(network, load(checked.validation).test_loader())
    assert {name: found[name] for name in ("acc", "loss")} == scores


def test_training_is_that_of_a_run_without_scoring(tmp_path):
    one, other = experiment(tmp_path / "a", **HELD_BACK), experiment(tmp_path / "b", validation=0.2)
    train(one), train(other)
    assert same_weights(one / "last_model.tar", other / "last_model.tar") and metrics(one) == metrics(other)


def test_a_longer_run_is_scored_anew_and_not_before_its_end(tmp_path, monkeypatch):
    whole, folder = (experiment(tmp_path / name, num_epochs=n, **HELD_BACK) for name, n in (("a", 3), ("b", 1)))
    train(whole), train(folder)
    assert json.loads((folder / "test.json").read_text())["epoch"] == 1
    raw = json.loads((folder / "params.json").read_text()) | {"num_epochs": 3}
    (folder / "params.json").write_text(json.dumps(raw))
    runs.train(folder, params.load(folder), "", until=2)
    assert not (folder / "test.json").exists()  # deleted, because the best epoch may change
    train(folder)
    assert (folder / "test.json").read_bytes() == (whole / "test.json").read_bytes()
    assert metrics(folder) == metrics(whole)
    before = files(folder)
    assert "finished" in train(folder).out and files(folder) == before


def test_a_run_that_ended_before_it_was_scored_is_scored(tmp_path, monkeypatch):
    whole, folder = (experiment(tmp_path / name, **HELD_BACK) for name in "ab")
    train(whole)
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runs.train(folder, params.load(folder), "")
    assert len(metrics(folder)) == 2 and not (folder / "test.json").exists()
    last = (folder / "last_model.tar").read_bytes()
    monkeypatch.setattr(engine, "train_epoch", None)  # training would now raise an error
    train(folder)
    assert (folder / "test.json").read_bytes() == (whole / "test.json").read_bytes()
    assert (folder / "last_model.tar").read_bytes() == last


def test_a_student_is_scored_with_its_agreement_and_the_accuracy_of_the_answers(trained, tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=1, **with_teacher(trained / "baseline/teacher"), **HELD_BACK)
    train(folder)
    zoo = runs.Zoo(data.DATASETS["digits"], torch.device("cpu"))
    student, teacher = (zoo.frozen("net", path / "best_model.tar") for path in (folder, trained / "baseline/teacher"))
    batches = list(load().test_loader())
    same = sum(int((student(x).argmax(1) == teacher(x).argmax(1)).sum()) for x, _ in batches)
    found = json.loads((folder / "test.json").read_text())
    assert found["agreement"] == pytest.approx(100 * same / len(load().test))
    assert found["teacher_acc"] == pytest.approx(measure.evaluate(teacher, load().test_loader())["acc"])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_nothing_held_back_or_nothing_left_is_refused(share, tmp_path):
    done = script("train_scratch.py", "--save_path", experiment(tmp_path / "x", validation=share))
    assert done.status == 2 and done.err.count("\n") == 1 and f"validation {share} holds back" in done.err


def test_their_accuracies_are_not_shown_as_test_accuracies(tmp_path):
    folder = experiment(tmp_path / "x", **HELD_BACK)
    train(folder)
    run, local = spec.make(folder), ledger.Local()
    assert local.summary(run) == ledger.Summary() and local.histories(run) == {}
    accuracies = [line["validation"]["acc"] for line in metrics(folder)]
    assert local.summary(run, "validation") == ledger.Summary({0: max(accuracies)}, {0: accuracies[-1]})
    done = script("results.py", tmp_path)
    assert done.status == 0 and f"{max(accuracies):.2f}" not in done.out


def test_their_records_hold_validation_accuracies(tmp_path, monkeypatch):
    projects.set_root(monkeypatch, tmp_path)
    run = spec.make(experiment(tmp_path / "experiments/some/x", validation=0.2))
    lines = [{"train": {"loss": 1.0}, "validation": {"acc": acc, "loss": 1.0}} for acc in (50.0, 40.0)]
    publish.write_records(ledger.records_file(run.experiment), [publish.record_of_metrics(run, lines)])
    recorded = ledger.Recorded()
    assert recorded.summary(run) == ledger.Summary() and recorded.histories(run) == {}
    assert recorded.summary(run, "validation") == ledger.Summary({0: 50.0}, {0: 40.0})
