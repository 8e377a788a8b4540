"""Figures of tiny runs are written, are identical each time, and show the right numbers. Bad input is refused."""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from projects import experiment, grow, local, log, recorded, script, set_root
from test_page import CARDS

import model
from method.datafree import pixels
from method.inversion import invert
from study import cards
from study.entries import baseline
from study.figures import adaptive, curves, inversion, matrix, responses, style, sweep, teachers, tsne
from study.ledger import preferred, read_metrics
from study.tables import read_target
from training import engine, spec
from utils import checkpoint, data
from utils.errors import UserError

pytest.importorskip("matplotlib", reason="figures need matplotlib")


STUDENT = "experiments/mini/baseline/student"


def fill(make, kinds=("normal", "nasty")):
    """Make runs of a student alone and of students of two teachers. make: `local` or `recorded`."""
    make(STUDENT, 60.0, 70.0)
    for kind in kinds:
        low, student = {"normal": 70.0, "nasty": 50.0}[kind], f"experiments/mini/kd_{kind}/student"
        make(student, low, low + 9)
        make(student, low + 11, low + 10, seed=1)
        make(student, low + 1, low, changes={"temperature": 2})
        make(student, low + 2, low + 1, changes={"temperature": 2}, seed=1)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A project root with two sweeps, `temper` and `many`, and the matrix `grid`. No run has been made."""
    set_root(monkeypatch, tmp_path)
    named = Path("experiments/mini")
    root = grow(tmp_path / named, named)
    rows = [
        {"name": f"CNN, {kind} teacher", "experiment": f"mini/kd_{kind}/student", "change": "own"}
        for kind in ("normal", "nasty")
    ]
    temper = {"title": "", "source": "", "key": "temperature", "values": [2, 4, 8], "rows": rows}
    many = temper | {"rows": rows * 4}
    defences = {kind: f"mini/kd_{kind}/student" for kind in ("normal", "nasty")}
    grid = {"alone": "mini/baseline/student", "yardstick": {"label_smoothing": 0.1}, "defences": defences}
    grid |= {"template": {"defended": defences["nasty"], "undefended": defences["normal"]}}
    grid |= {"title": "", "source": "", "attacks": {"kd": {}, "cold": {"temperature": 2}, "hot": {"temperature": 8}}}
    mini = grid | {"presets": ["few"], "draws": 3, "seeds": [0, 1], "tuning_seed": 2}
    mini["defences"] = {kind: {"student": name} for kind, name in defences.items()}
    targets = {"temper": temper, "many": many, "word": "temper", "grid": grid, "other": "grid", "mini": mini}
    (tmp_path / "experiments/tables.json").write_text(json.dumps(targets))
    return root


@pytest.fixture
def project(empty):
    """The same project root, with runs of two values of the sweeps."""
    fill(local)
    return empty


def teacher_flags(trained):
    return ["--normal", trained / "baseline/teacher", "--nasty", trained / "kd_nasty/nasty"]


def commands(trained):
    return {
        "curves": ["curves", *(trained / name for name in ("baseline/student", "kd_normal/student", "kd_nasty/nasty"))],
        "responses": ["responses", *teacher_flags(trained)],
        "tsne": ["tsne", *teacher_flags(trained), "--count", 20],
        "inversion": ["inversion", "--teacher", *teacher_flags(trained)[1::2], "--steps", 2, "--batch_size", 10],
        "temper": ["sweep", "temper"],
        "many": ["sweep", "many"],
        "grid": ["matrix", "grid"],
    }


def draw(name, trained, output):
    """The bytes of the PNG and the PDF that `figures.py` writes; both have no date, and the PDF has TrueType fonts."""
    if name == "tsne":
        pytest.importorskip("sklearn", reason="t-SNE needs scikit-learn")
    done = script("figures.py", *commands(trained)[name], "--output", output)
    assert done.status == 0, done.err
    png, pdf = [Path(line).read_bytes() for line in done.out.splitlines()[-2:]]
    assert png.startswith(b"\x89PNG") and len(png) > 10_000
    assert pdf.startswith(b"%PDF") and b"CIDFontType2" in pdf and b"Type3" not in pdf
    assert b"Date" not in pdf and b"atplotlib" not in pdf + png
    return png, pdf


@pytest.mark.parametrize("name", ["tsne", "inversion"])  # both use random numbers
def test_files_are_the_same_each_time(name, trained, project, tmp_path):
    assert draw(name, trained, f"{tmp_path}/one/") == draw(name, trained, f"{tmp_path}/other/named.pdf")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [f"{name}.pdf", f"{name}.png"]
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["named.pdf", "named.png"]


@pytest.mark.parametrize("name", ["curves", "responses", "temper", "many", "grid"])
def test_the_other_figures(name, trained, project, tmp_path):
    draw(name, trained, tmp_path / f"{name}.png")


def test_seeds_are_one_curve(project, capsys):
    folder = project / "kd_normal"
    run = curves.find_run(folder / "student")
    assert run == curves.find_run(folder / "student,seed=1") != curves.find_run(folder / "student,temperature=2")
    history = curves.read_history(run, preferred([run]).histories(run))
    assert history["test", "acc"].tolist() == [[70.0, 79.0], [81.0, 80.0]] and not capsys.readouterr().out
    log(folder / "student,seed=1", 1.0)
    history = curves.read_history(run, preferred([run]).histories(run))
    assert history["test", "acc"].tolist() == [[70.0], [1.0]]
    assert "only 1 epochs are drawn, because seed 1 has no more yet" in capsys.readouterr().out


def lines_of(figure):
    return [line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_ydata())]


def test_figures_draw_records_where_nothing_has_run(empty):
    fill(recorded)
    with style.sheet():
        assert lines_of(curves.curves([empty / "kd_nasty/student"])) == [[55.5, 59.5]]  # means over both seeds
    assert sweep.read_lines("temper", read_target("temper"))[1].accuracies == {2: [51.0, 52.0], 4: [59.0, 61.0]}
    with style.sheet():
        ax = matrix.matrix("grid").axes[0]
    assert {text.get_text() for text in ax.texts} == {"+9.00", "+1.00", "−11.00", "−19.00"}


def test_figures_draw_local_runs_instead_of_records(empty):
    fill(recorded)
    local("experiments/mini/kd_nasty/student", 30.0, 20.0)
    with style.sheet():
        assert lines_of(curves.curves([empty / "kd_nasty/student"])) == [[30.0, 20.0]]
        assert lines_of(curves.curves([empty / "kd_normal/student"])) == [[75.5, 79.5]]
    assert [line.accuracies for line in sweep.read_lines("temper", read_target("temper"))] == [{}, {4: [30.0]}]


def test_runs_with_validation_images_have_no_curves(empty):
    path = local("experiments/mini/kd_nasty/student", 30.0, 20.0, changes={"validation": 0.2}) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"test"', '"validation"'))
    with style.sheet(), pytest.raises(UserError, match="has validation images, and curves are drawn for test images"):
        curves.curves([path.parent])


def test_a_line_that_is_being_written(project):
    path = project / "baseline/student/metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "tr')
    assert len(read_metrics(path)) == 2
    assert read_metrics(project / "none") == []


def test_names_of_curves(tmp_path):
    assert curves.short_names([tmp_path / "a/x", tmp_path / "b/x"]) == ["a/x", "b/x"]
    assert curves.short_names([tmp_path / "a/x"]) == ["x"]


def test_a_matrix_has_gains_and_frames_the_strongest(project):
    with style.sheet():
        ax = matrix.matrix("other").axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["kd", "cold", "hot"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["normal", "nasty"]  # their teachers have not run
    numbers = {text.get_position(): text.get_text() for text in ax.texts}
    # The student alone has 70, with one seed. With this seed the students have 79 and 59; at temperature 2, 71 and 51.
    assert numbers == {(0, 0): "+9.00", (1, 0): "+1.00", (0, 1): "−11.00", (1, 1): "−19.00"}
    assert not ax.patches  # no frame, because one attack has not run
    for kind, best in (("normal", 60.0), ("nasty", 65.0)):
        for seed in 0, 1:
            local(f"experiments/mini/kd_{kind}/student", best, best, changes={"temperature": 8}, seed=seed)
    with style.sheet():
        ax = matrix.matrix("other").axes[0]
    assert [patch.get_xy() for patch in ax.patches] == [(-0.5, -0.5), (1.5, 0.5)]


def test_adaptive_has_the_scores_of_both_thieves(empty):
    """The mean and the interval of the chosen thief are those of the card; the passive one's are computed."""
    cards.write_cards("mini", [card | {"digest": cards.digest(card)} for card in CARDS])
    found = {(card["preset"], card["defence"]): card for card in CARDS}
    for card in CARDS:  # both thieves have the same accuracies
        assert adaptive.passive_score(card)["mean"] == pytest.approx(card["score"]["mean"])
    with style.sheet():
        axes = adaptive.adaptive("mini").axes
    assert [ax.get_title(loc="left") for ax in axes] == ["insider", "few"]
    for ax in axes:
        names = [label.get_text() for label in ax.get_yticklabels()]
        scores = [found[ax.get_title(loc="left"), name]["score"] for name in names]
        assert [score["mean"] for score in scores] == sorted(score["mean"] for score in scores)
        whiskers = [bar.get_segments()[0][:, 0].tolist() for bar in ax.collections]
        assert whiskers[1::2] == [pytest.approx([score["low"], score["high"]]) for score in scores]


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


def test_inversion_draws_the_images_without_data(trained, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", None)
    folders, own = [trained / "baseline/teacher", trained / "kd_nasty/nasty"], {"steps": 3, "seed": 1}
    with style.sheet():
        figure = inversion.inversion(folders, ["normal", "nasty"], per_class=2, batch_size=25, **own)
    assert [ax.get_title() for ax in figure.axes] == ["normal", "nasty"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list("0123456789")
    device = engine.pick_device()
    dataset, networks = teachers.networks(folders, device)
    lines = capsys.readouterr().out.splitlines()
    for ax, network, folder, line in zip(figure.axes, networks, folders, lines, strict=True):
        wanted = torch.arange(25, device=device) % 10
        images, terms = invert(network, wanted, 32, flip=False, **own)
        drawn = pixels(images, data.DATASETS[dataset]).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        picture = ax.images[0].get_array()
        assert picture.shape == (10 * 34 - 2, 2 * 34 - 2, 3)
        for row, column in ((0, 0), (3, 1), (9, 1)):
            part = picture[34 * row : 34 * row + 32, 34 * column : 34 * column + 32]
            np.testing.assert_array_equal(part, drawn[row + 10 * column])
        right = 100 * (network(images).argmax(1) == wanted).double().mean()
        assert line.startswith(f"{folder}: recognises the intended class in {right:.1f} % of 25 images")
        assert f"{terms['bn']:.3g}" in line


def test_inversion_puts_the_original_beside_a_defended_teacher(trained):
    with style.sheet():
        figure = inversion.inversion([trained / "kd_nasty/nasty"], per_class=1, batch_size=10, steps=1)
        alone = inversion.inversion([trained / "baseline/teacher"], per_class=1, batch_size=10, steps=1)
    titles = [ax.get_title().replace("\n", "") for ax in figure.axes]
    assert titles == ["baseline/teacher", "kd_nasty/nasty"]
    assert len(alone.axes) == 1


def test_inversion_of_a_teacher_without_batch_norm(tmp_path):
    folder = experiment(tmp_path / "mlp", model_name="mlp", num_channels=None)
    checkpoint.save(folder / "best_model.tar", {"state_dict": model.build("mlp", 10).state_dict()})
    done = script("figures.py", "inversion", "--teacher", folder, "--output", tmp_path / "x")
    assert (done.status, done.out) == (2, "")
    assert "MLP has no batch norm" in done.err and done.err.count("\n") == 1


def test_titles_fit_their_panels():
    titles = {"nasty teacher": "nasty\nteacher", "kd_nasty_cnn/nasty_cnn": "kd_nasty_\ncnn/\nnasty_cnn", "cnn": "cnn"}
    for title, wrapped in titles.items():
        assert inversion.wrap(title, 10.5 * inversion.LETTER) == wrapped
        assert inversion.wrap(title, 5) == title


def test_a_sweep_on_validation_images(empty):
    targets = json.loads((empty.parent / "tables.json").read_text())
    targets["temper"]["part"] = "validation"
    (empty.parent / "tables.json").write_text(json.dumps(targets))
    folder = local("experiments/mini/kd_nasty/student", 30.0, 20.0)
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"test"', '"validation"'))
    with style.sheet():
        figure = sweep.sweep("temper")
    assert lines_of(figure)[0] == [30.0]
    assert "validation accuracy (%)" in {
        text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))
    }


def test_sweep_numbers(project, capsys):
    lines = sweep.read_lines("temper", read_target("temper"))
    assert [(line.title, line.role, line.alone) for line in lines] == [
        ("CNN", "normal teacher", [70.0]),
        ("CNN", "nasty teacher", [70.0]),
    ]
    assert lines[0].accuracies == {2: [71.0, 72.0], 4: [79.0, 81.0]}
    assert lines[1].means.tolist() == [51.5, 60.0]
    assert lines[1].deviations == pytest.approx([statistics.stdev([1, 2]), statistics.stdev([9, 11])])
    assert "missing in CNN, nasty teacher: temperature 8 (not yet run)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "row, student",
    [
        ("digits-matrix/kd_sdb_cnn/cnn8_key", "digits-matrix/baseline/cnn8"),  # found by its network
        ("digits/kd_nasty_cnn/cnn8", "digits/baseline/cnn8"),  # found by its name
    ],
)
def test_the_baseline_of_a_student(row, student):
    """It has the common changes, the seed and the share of the images of the student."""
    changes = {"subset_percent": 0.1, "temperature": 8}
    found = baseline(spec.make(f"experiments/{row}", changes, common={"gamma": 0.5}, seed=3))
    assert found == spec.make(f"experiments/{student}", {"subset_percent": 0.1, "gamma": 0.5}, seed=3)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"num_epochs": 2, "schedule": [1], "temperature": 8}, "cnn8,num_epochs=2,schedule=1"),
        ({"num_channels": 4}, "cnn8,num_channels=4"),  # no experiment has this network
        ({"model_name": "preresnet8"}, "preresnet8"),  # another experiment has this network
        ({"method": "dafl", "num_epochs": 2, "subset_percent": 0.1}, "cnn8,subset_percent=0.1"),  # no images: no epochs
    ],
)
def test_the_baseline_of_a_student_with_changed_keys(changes, expected):
    """The same network, trained in the same way."""
    found = baseline(spec.make("experiments/digits-few/kd_normal_cnn/cnn8", changes))
    assert found.folder == f"experiments/digits-few/baseline/{expected}"


def test_positions():
    assert sweep.positions([0.1, 0.3, 0.5]) == {0.1: 0.1, 0.3: 0.3, 0.5: 0.5}
    spread = sweep.positions([0, 0.001, 0.01, 0.1])
    assert np.diff(list(spread.values())) == pytest.approx(np.log([2.5118864, 10, 10]))
    assert sweep.positions(["a", "b"]) == {"a": 0, "b": 1}


def test_labels_keep_apart():
    assert style.apart([5.0, 1.0], 1.0) == [5.0, 1.0]
    assert style.apart([2.0, 2.0, 9.0], 1.0) == [1.5, 2.5, 9.0]
    words = tsne.place_words([(0.5, 0.5), (0.5, 0.5), (0.5, 0.9)], ["cat", "dog", "ship"])
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
        (["responses", "{teachers}", "--images", "0", "100"], "--images 100"),
        (["responses", "{teachers}", "--temperature", "0"], "--temperature 0"),
        (["responses", "{teachers}", "--temperature", "hot"], "invalid float"),
        (["responses"], "required"),
        (["tsne", "{teachers}", "--count", "9"], "--count 9"),
        (["inversion"], "required"),
        (["inversion", "--teacher", "{project}/none"], "no such file"),
        (["inversion", "--teacher", "{trained}/kd_nasty/nasty", "{project}/baseline/teacher"], "make it with"),
        (["inversion", "--teacher", "{project}/cifar", "{trained}/kd_nasty/nasty"], "teachers of one data set"),
        (["inversion", "--teacher", "{trained}/baseline/teacher", "--labels", "a", "b"], "2 labels for 1 teachers"),
        (["inversion", "--teacher", "{trained}/kd_nasty/nasty", "--batch_size", "9"], "must be at least 10, for 1 of"),
        (["inversion", "--teacher", "{trained}/kd_nasty/nasty", "--per_class", "26"], "must be at least 260, for 26"),
        (["inversion", "--teacher", "{trained}/kd_nasty/nasty", "--steps", "0"], "must be at least 1, not 0"),
        (["inversion", "--teacher", "{trained}/kd_nasty/nasty", "--a_f", "-1"], "must be at least 0, not -1"),
        (["inversion", "--teacher", "{trained}/kd_nasty/nasty", "--a_tv", "nan"], "must be at least 0, not nan"),
        (["inversion", "--teacher", "{trained}/kd_nasty/nasty", "--a_l2", "few"], "invalid float value"),
        (["sweep", "tempr"], 'did you mean "temper"'),
        (["sweep", "grid"], "not a sweep; there are temper, many, word"),
        (["adaptive", "grid"], "not a benchmark; there are mini"),
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
