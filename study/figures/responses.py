"""The outputs of two teachers for single images: softmax(logits / T)."""

import torch

from study.figures import style, teachers
from utils.errors import UserError

DEFAULT_IMAGES = 4


def responses(normal, nasty, data_dir="data", download=False, images=None, temperature=4.0):
    """Draw a row for each test image: the image, and the softened outputs of the normal and the nasty teacher.

    normal, nasty: run folders. images: indices of test images; default: the first image of each of the first classes.
    """
    if not 0 < temperature < float("inf"):
        raise UserError(f"--temperature {temperature:g}: must be above 0")
    dataset, networks = teachers.load(normal, nasty, data_dir, download)
    index = torch.tensor(images or first_of_classes(dataset.test.labels, DEFAULT_IMAGES))
    if bad := [number for number in index.tolist() if not 0 <= number < len(dataset.test)]:
        raise UserError(f"--images {bad[0]}: {dataset.name} has {len(dataset.test)} test images, numbered from 0")
    softened = [(teachers.outputs(network, dataset, index)[1] / temperature).softmax(1) for network in networks]
    return draw_rows(dataset, index, softened, temperature)


def first_of_classes(labels, count):
    """The index of the first image of each of the first `count` classes in `labels`."""
    return [int((labels == label).nonzero()[0]) for label in labels.unique()[:count]]


def draw_rows(dataset, index, softened, temperature):
    """Draw the test images `index`, and the probabilities (N, C) of each teacher in `softened`."""
    names, true = teachers.class_names(dataset.name), dataset.test.labels[index].tolist()
    rows = len(index)
    figure, axes = style.grid(rows, 3, 0.65 + 0.85 * rows, gridspec_kw={"width_ratios": [1, 2.6, 2.6]})
    for row, number in enumerate(index.tolist()):
        axes[row, 0].imshow(dataset.test.images[number].numpy())
        axes[row, 0].set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(names[true[row]], rotation=0, ha="right", va="center")
        axes[row, 0].spines[:].set_visible(False)
        top = 1.2 * max(float(answers[row].max()) for answers in softened)
        for ax, answers in zip(axes[row, 1:], softened, strict=True):
            bars(ax, answers[row].tolist(), true[row], top)
            ax.tick_params(labelbottom=row == rows - 1, length=0)
        axes[row, 2].tick_params(labelleft=False)
    for ax, teacher in zip(axes[0, 1:], teachers.NAMES, strict=True):
        style.name(ax, f"{teacher}\nsoftmax(logits / {temperature:g})")
    for ax in axes[-1, 1:]:
        name_classes(ax, names)
    return figure


def bars(axes, probabilities, true, top):
    """Draw a bar for each class. The true class has another colour and a mark above its bar. top: limit of the axis."""
    ordinary, marked = style.COLOURS[0], style.COLOURS[1]
    colours = [marked if label == true else ordinary for label in range(len(probabilities))]
    axes.bar(range(len(probabilities)), probabilities, color=colours, width=0.75)
    axes.plot(true, probabilities[true] + 0.09 * top, marker="v", color=marked, clip_on=False)
    axes.set(xlim=(-0.6, len(probabilities) - 0.4), ylim=(0, top))
    axes.yaxis.get_major_locator().set_params(nbins=3, steps=(1, 2, 5, 10))
    axes.grid(axis="y")


def name_classes(axes, names):
    """Label the bars with class names, or with some class numbers if there are many classes."""
    if max(map(len, names)) > 3:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axes.set_xlabel("class")
        if len(names) <= 20:
            axes.set_xticks(range(len(names)), names)
