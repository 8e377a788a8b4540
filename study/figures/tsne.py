"""t-SNE of the features and the logits of two teachers. scikit-learn is imported only when the figure is drawn."""

import numpy as np

from study.figures import style, teachers
from utils.errors import UserError

COLOURS = (*style.COLOURS, "#999999", "#F0E442", "#6B3D00")
MOST_CLASSES = len(COLOURS)  # more colours are hard to distinguish
WORD = 0.034, 0.058  # width of a letter and height of a line, as fractions of the axes


def tsne(normal, nasty, data_dir="data", download=False, count=1000):
    """Draw features (top) and logits (bottom) of both teachers for `count` test images, coloured by class.

    normal, nasty: run folders. The images are the first `count` test images of the first ten classes. Returns a figure.
    Raises UserError if scikit-learn is missing, or `count` is below 10.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE needs scikit-learn: pip install scikit-learn") from None
    if count < 10:
        raise UserError(f"--count {count}: must be at least 10")
    dataset, networks = teachers.load(normal, nasty, data_dir, download)
    index = (dataset.test.labels < MOST_CLASSES).nonzero()[:count, 0]
    labels, names = dataset.test.labels[index].numpy(), teachers.class_names(dataset.name)
    if MOST_CLASSES < dataset.spec.num_classes:
        print(f"{dataset.name}: only the first {MOST_CLASSES} of {dataset.spec.num_classes} classes are drawn")
    perplexity = min(30, (len(index) - 1) / 3)

    figure, axes = style.grid(2, 2, 5.4)
    for column, network in enumerate(networks):
        axes[0, column].set_title(teachers.NAMES[column])
        for ax, outputs in zip(axes[:, column], teachers.outputs(network, dataset, index), strict=True):
            points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(outputs.numpy())
            scatter(ax, points, labels, names)
    for ax, name in zip(axes[:, 0], ("features", "logits"), strict=True):
        ax.set_ylabel(name)
    return figure


def scatter(axes, points, labels, names):
    """Draw points (N, 2) in the colour and marker of their class, and the name of each class at its medoid."""
    from matplotlib.patheffects import withStroke

    classes = np.unique(labels)
    for label in classes:
        marker = style.MARKERS[label % len(style.MARKERS)]
        axes.scatter(*points[labels == label].T, s=7, color=COLOURS[label], marker=marker, linewidths=0, alpha=0.8)
    axes.set(xticks=[], yticks=[], xmargin=0.12)  # space for the names
    axes.spines[:].set(visible=True, color="#BBBBBB")
    axes.set_box_aspect(1)
    halo = [withStroke(linewidth=2.2, foreground="white")]
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    middles = [(medoid(points[labels == label]) - low) / (high - low) for label in classes]
    for (x, y), label in zip(place_words(middles, [names[label] for label in classes]), classes, strict=True):
        options = {"ha": "center", "va": "center", "weight": "bold", "path_effects": halo}
        axes.text(x, y, names[label], transform=axes.transAxes, **options)


def medoid(points):
    """The point (2,) with the smallest sum of distances to all others. Unlike the mean, it is one of the points."""
    return points[np.linalg.norm(points[:, None] - points[None], axis=2).sum(1).argmin()]


def place_words(middles, words):
    """Positions (x, y) of words, as fractions of the axes: `middles`, or higher if words would overlap."""
    placed = {}
    for index in sorted(range(len(words)), key=lambda index: middles[index][1]):
        x, y = middles[index]
        for other, (left, low) in sorted(placed.items(), key=lambda item: item[1][1]):
            if abs(x - left) < WORD[0] * (len(words[index]) + len(words[other])) / 2 and abs(y - low) < WORD[1]:
                y = low + WORD[1]
        placed[index] = x, y
    return [placed[index] for index in range(len(words))]
