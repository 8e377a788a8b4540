"""Figures of tiny runs: that there are any, the same each time, drawn from the right numbers, and what is refused."""

import json
import shutil
import statistics
import sys

import numpy as np
import pytest
from conftest import experiment, grow, script

from utils import plan, tables
from utils.figures import curves, responses, style, sweep, teachers, tsne

pytest.importorskip("matplotlib", reason="figures need matplotlib")


def log(folder, *accuracies, loss=1.0):
    lines = [
        {"epoch": i, "train": {"loss": loss}, "test": {"acc": acc, "loss": 1.0}} for i, acc in enumerate(accuracies, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project root with the sweeps `temper`, two of its values run, and `many`, with more rows than a panel takes."""
    for module in (plan, tables):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    named = tables.Path("experiments/mini")
    root = grow(tmp_path / named, named)
    rows = [
        {"name": f"CNN, {kind} teacher", "experiment": f"mini/kd_{kind}/student", "change": "own"}
        for kind in ("normal", "nasty")
    ]
    temper = {"title": "", "source": "", "key": "temperature", "values": [2, 4, 8], "rows": rows}
    many = temper | {"rows": rows * 4}
    (tmp_path / "experiments/tables.json").write_text(json.dumps({"temper": temper, "many": many, "word": "temper"}))
    log(root / "baseline/student", 60.0, 70.0)
    for kind, low in (("normal", 70.0), ("nasty", 50.0)):
        base = root / f"kd_{kind}/student"
        log(base, low, low + 9)
        for tags, best in (("seed=1", low + 11), ("temperature=2", low + 1), ("seed=1,temperature=2", low + 2)):
            folder = base.with_name(f"student,{tags}")
            shutil.copytree(base, folder)
            log(folder, best, best - 1)
    return root


def teacher_flags(trained):
    return ["--normal", trained / "baseline/teacher", "--nasty", trained / "kd_nasty/nasty"]


def commands(trained):
    return {
        "curves": ["curves", *(trained / name for name in ("baseline/student", "kd_normal/student", "kd_nasty/nasty"))],
        "responses": ["responses", *teacher_flags(trained)],
        "tsne": ["tsne", *teacher_flags(trained), "--count", 20],
        "temper": ["sweep", "temper"],
        "many": ["sweep", "many"],
    }


@pytest.mark.parametrize("name", ["curves", "responses", "tsne", "temper", "many"])
def test_files_are_the_same_each_time(name, trained, project, tmp_path):
    if name == "tsne":
        pytest.importorskip("sklearn", reason="t-SNE needs scikit-learn")
    made = []
    for output in (f"{tmp_path}/one/", f"{tmp_path}/other/named.pdf"):
        done = script("figures.py", *commands(trained)[name], "--output", output)
        assert done.status == 0, done.err
        png, pdf = [tables.Path(line) for line in done.out.splitlines()[-2:]]
        made.append((png.read_bytes(), pdf.read_bytes()))
    assert made[0] == made[1]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [f"{name}.pdf", f"{name}.png"]
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["named.pdf", "named.png"]
    png, pdf = made[0]
    assert png.startswith(b"\x89PNG") and len(png) > 10_000
    assert pdf.startswith(b"%PDF") and b"CIDFontType2" in pdf and b"Type3" not in pdf
    assert b"Date" not in pdf and b"atplotlib" not in pdf + png


def test_seeds_are_one_curve(project, capsys):
    folder = project / "kd_normal"
    assert list(curves.group([folder / "student"]).values()) == [[folder / "student", folder / "student,seed=1"]]
    alone = curves.group([folder / "student,seed=1", folder / "student,temperature=2"])
    assert [len(runs) for runs in alone.values()] == [1, 2]
    log(folder / "student,seed=1", 1.0)
    history = curves.read_group(folder / "student", [folder / "student", folder / "student,seed=1"])
    assert history["test", "acc"].tolist() == [[70.0], [1.0]]
    assert "1 epochs are drawn, as student,seed=1 has no more" in capsys.readouterr().out


def test_a_line_that_is_being_written(project):
    path = project / "baseline/student/metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "tr')
    assert len(curves.read_metrics(path)) == 2
    assert curves.read_metrics(project / "none") == []


def test_names_of_curves(tmp_path):
    assert curves.short_names([tmp_path / "a/x", tmp_path / "b/x"]) == ["a/x", "b/x"]
    assert curves.short_names([tmp_path / "a/x"]) == ["x"]


def test_responses_are_softened_probabilities(trained):
    dataset, networks = teachers.load(trained / "baseline/teacher", trained / "kd_nasty/nasty")
    index = responses.first_of_classes(dataset.test.labels, 4)
    assert dataset.test.labels[index].tolist() == [0, 1, 2, 3]
    with style.sheet():
        axes = responses.responses(trained / "baseline/teacher", trained / "kd_nasty/nasty", images=index).axes
    images, _ = next(iter(dataset.test_loader()))
    for column, network in enumerate(networks, 1):
        wanted = (network(images[index]) / 4).softmax(1)
        for row in range(4):
            bars = axes[3 * row + column].patches
            np.testing.assert_allclose([bar.get_height() for bar in bars], wanted[row], rtol=1e-5)
            assert len({bar.get_facecolor() for bar in bars}) == 2
            assert bars[row].get_facecolor() != bars[row + 1].get_facecolor()


def test_sweep_numbers(project, capsys):
    lines = sweep.read_lines("temper", sweep.read_sweep("temper"))
    assert [(line.title, line.role, line.alone) for line in lines] == [
        ("CNN", "normal teacher", [70.0]),
        ("CNN", "nasty teacher", [70.0]),
    ]
    assert lines[0].accuracies == {2: [71.0, 72.0], 4: [79.0, 81.0]}
    assert lines[1].means.tolist() == [51.5, 60.0]
    assert lines[1].deviations == pytest.approx([statistics.stdev([1, 2]), statistics.stdev([9, 11])])
    assert "left out of CNN, nasty teacher: temperature 8 (not yet run)" in capsys.readouterr().out


def test_positions():
    assert sweep.positions([0.1, 0.3, 0.5]) == {0.1: 0.1, 0.3: 0.3, 0.5: 0.5}
    spread = sweep.positions([0, 0.001, 0.01, 0.1])
    assert np.diff(list(spread.values())) == pytest.approx(np.log([2.5118864, 10, 10]))
    assert sweep.positions(["a", "b"]) == {"a": 0, "b": 1}


def test_labels_keep_apart():
    assert style.apart([5.0, 1.0], 1.0) == [5.0, 1.0]
    assert style.apart([2.0, 2.0, 9.0], 1.0) == [1.5, 2.5, 9.0]
    words = tsne.apart([(0.5, 0.5), (0.5, 0.5), (0.5, 0.9)], ["cat", "dog", "ship"])
    assert words == [(0.5, 0.5), (0.5, 0.5 + tsne.WORD[1]), (0.5, 0.9)]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["curves", "none"], "there is no such run"),
        (["curves", "{project}/baseline/teacher"], "no metrics yet"),
        (["curves", "{project}/baseline/student", "--labels", "a", "b"], "2 labels for 1 experiments"),
        (["curves", "{project}/baseline/student", "--output", "{project}/baseline/student/params.json/x"], "written"),
        (["responses", "--normal", "{project}/none", "--nasty", "{trained}/kd_nasty/nasty"], "no such file"),
        (
            ["responses", "--normal", "{project}/baseline/teacher", "--nasty", "{trained}/kd_nasty/nasty"],
            "make it with",
        ),
        (["responses", "--normal", "{project}/cifar", "--nasty", "{trained}/kd_nasty/nasty"], "cifar10"),
        (["responses", "{teachers}", "--images", "0", "899"], "--images 899"),
        (["responses", "{teachers}", "--temperature", "0"], "--temperature 0"),
        (["responses", "{teachers}", "--temperature", "hot"], "invalid float"),
        (["responses"], "required"),
        (["tsne", "{teachers}", "--count", "9"], "--count 9"),
        (["sweep", "tempr"], 'did you mean "temper"'),
        (["sweep", "word"], "no sweep"),
        (["sweep", "temper"], "python reproduce.py temper"),
    ],
)
def test_refusals(argv, words, trained, project):
    experiment(project / "cifar", dataset="cifar10")
    if argv == ["sweep", "temper"]:
        for path in project.glob("kd_*/*/metrics.jsonl"):
            path.unlink()
    if "tsne" in argv:
        pytest.importorskip("sklearn", reason="t-SNE needs scikit-learn")
    spelt = [str(word).format(project=project, trained=trained, teachers="{teachers}") for word in argv]
    flags = [flag for word in spelt for flag in (teacher_flags(trained) if word == "{teachers}" else [word])]
    done = script("figures.py", *flags, *([] if "--output" in flags else ["--output", project / "out/x"]))
    assert (done.status, done.out) == (2, "")
    assert words in done.err and done.err.count("\n") == 1
    assert not (project / "out").exists()


@pytest.mark.parametrize(("missing", "figure"), [("matplotlib", "curves"), ("scikit-learn", "tsne")])
def test_optional_libraries(missing, figure, trained, monkeypatch, tmp_path):
    for module in [name for name in sys.modules if name.partition(".")[0] in ("matplotlib", "sklearn")]:
        if (module.startswith("sklearn")) == (missing == "scikit-learn"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn" if missing == "scikit-learn" else missing, None)
    done = script("figures.py", *commands(trained)[figure], "--output", tmp_path / "x")
    assert done.status == 2
    assert f"pip install {missing}" in done.err and done.err.count("\n") == 1
