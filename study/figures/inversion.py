"""Images of each class that DeepInversion (Yin et al., CVPR 2020) makes from the batch-norm statistics of teachers."""

import re
import textwrap
from pathlib import Path

import torch
from torchvision.utils import make_grid

from method.datafree import pixels
from method.inversion import batch_norms, invert, no_batch_norm
from study.figures import curves, style, teachers
from training import engine, params
from utils.data import DATASETS
from utils.errors import UserError
from utils.metrics import accuracy
from utils.paths import display_path, from_root

MOST_CLASSES = 10  # largest number of rows
MOST_IMAGES = 10  # largest number of images in a row, for all teachers together
GAP = 2  # pixels between images
LARGEST = 0.6  # inches: maximum size of an image
NAME_WIDTH, PANEL_GAP = 0.9, 0.14  # inches: width of the class names, and space between panels
LETTER, LINE = 0.075, 0.14  # inches: width and height of a letter in a title


def inversion(folders, labels=None, per_class=None, batch_size=256, seed=0, **settings):
    """Draw a panel for each teacher. A row has the first images of a class, out of `batch_size` images in all.

    At most ten classes are drawn. folders: run folders with the same data set, which is not read. If there is a single
    folder of a defended teacher, its adversarial network f_A is drawn too. labels: titles of the panels; default:
    folders. per_class: number of images in a row; default: as many as fit. settings: arguments of `invert`.
    """
    folders = with_adversarial(*folders) if len(folders) == 1 else folders
    titles = labels or curves.short_names([Path(folder).absolute() for folder in folders])
    if len(titles) != len(folders):
        raise UserError(f"--labels: {len(titles)} labels for {len(folders)} teachers")
    device = engine.pick_device()
    dataset, networks = teachers.networks(folders, device)
    for network in networks:
        if not batch_norms(network):
            raise UserError(no_batch_norm(type(network).__name__))
    spec, classes = DATASETS[dataset], DATASETS[dataset].num_classes
    columns = per_class or max(1, min(MOST_IMAGES // len(folders), batch_size // classes))
    if batch_size < columns * classes:
        least = f"must be at least {columns * classes}, for {columns} of each of {classes} classes"
        raise UserError(f"--batch_size {batch_size}: {least}")
    if classes > MOST_CLASSES:
        print(f"{dataset}: only the first {MOST_CLASSES} of {classes} classes are drawn")

    wanted = torch.arange(batch_size, device=device) % classes
    panels = []
    for folder, network, title in zip(folders, networks, titles, strict=True):
        images, terms = invert(network, wanted, spec.image_size, title=title, seed=seed, **settings)
        share = accuracy(network(images), wanted)
        print(
            f"{display_path(folder)}: recognises the intended class in {share:.1f} % of {batch_size} images; "
            f"distance to the batch-norm statistics: {terms['bn']:.3g}"
        )
        by_class = images[: columns * classes].unflatten(0, (columns, classes)).transpose(0, 1)[:MOST_CLASSES]
        panels.append(pixels(by_class, spec).clamp(0, 1).cpu())
    return draw_panels(panels, titles, teachers.class_names(dataset))


def with_adversarial(folder):
    """For a defended teacher, [run folder of its adversarial network, folder]. Otherwise [folder]."""
    path = vars(params.load(folder)).get("adversarial_resume")
    return [from_root(path).parent, folder] if path else [folder]


def draw_panels(panels, titles, names):
    """Draw panels side by side. panels: images from 0 to 1, (classes, columns, 3, H, W), one tensor per panel."""
    rows, columns, _, height, _ = panels[0].shape
    room = style.WIDTH - NAME_WIDTH - PANEL_GAP * (len(panels) - 1)
    side = min(LARGEST, room / (columns * len(panels)))
    titles = [wrap(title, columns * side) for title in titles]
    lines = 1 + max(title.count("\n") for title in titles)
    figure, [axes] = style.grid(1, len(panels), 0.15 + LINE * lines + rows * side)
    figure.set_layout_engine("compressed", w_pad=PANEL_GAP / 2)  # for axes with a fixed aspect ratio
    for ax, images, title in zip(axes, panels, titles, strict=True):
        picture = make_grid(images.flatten(0, 1), columns, GAP, pad_value=1)[:, GAP:-GAP, GAP:-GAP]
        ax.imshow(picture.permute(1, 2, 0).numpy(), interpolation="none")  # a PDF then holds the original pixels
        ax.set_title(title)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    axes[0].set_yticks([(height - 1) / 2 + row * (height + GAP) for row in range(rows)], names[:rows])
    axes[0].tick_params(length=0)
    return figure


def wrap(title, width):
    """`title` in lines of at most `width` inches, broken at spaces and after "/" and "_"."""
    parted = textwrap.fill(re.sub("([/_])", r"\1 ", title), max(1, int(width / LETTER)))
    return re.sub("([/_]) ", r"\1", parted)
