"""The results of a target in any format, as results.py prints them."""

import json
import os
from pathlib import Path

from study.cards import read_cards, show
from study.formats import STYLES
from study.leaderboard import make_markdown
from study.page import make_html
from study.report import report
from study.tables import is_benchmark
from utils.errors import UserError
from utils.paths import ROOT


def render(target, style, output=None, **selection):
    """The results of a target as a string: a table, or the leaderboard of a benchmark.

    output: the file to write, to which links are relative. selection: see `tables.load_table`.
    """
    if not is_benchmark(target):
        if style == "html":
            raise UserError(f"--format html: {target} is not a benchmark")
        return report(target, style, **selection)
    cards = read_cards(target)
    root = os.path.relpath(ROOT, Path(output or "page").absolute().parent)
    root = "" if root == "." else f"{root}/"
    if style == "html":
        return make_html(cards, root)
    if style == "markdown":
        return make_markdown(cards, root)
    if style == "json":
        return json.dumps(cards, indent=4, ensure_ascii=False)
    if style not in STYLES:
        raise UserError(f"--format {style}: a benchmark has the formats {', '.join(STYLES)}, json and html")
    return show(cards, STYLES[style])
