"""Write the generated parts of README.md and docs/*.md: keys, equations, tables of results and timings.

    python docs/make.py            rewrite the pages
    python docs/make.py --check    only name the pages that are out of date; exit status 1 if there are any

A generated part lies between the comments <!-- NAME ARGUMENTS --> and <!-- end -->. NAME is a function in parts.py or
a target of experiments/tables.json. The ARGUMENTS of a target are KEY=VALUE, a key that is changed in all of its runs,
and "last", for rows with the accuracies of the last epoch.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import parts

import method
from training.cli import one_line_errors
from utils.paths import ROOT

PART = re.compile(r"(<!-- ([^:>]+) -->\n).*?(<!-- end -->)", re.S)


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_new_parts(text):
    """The text of a page, with its generated parts generated again."""
    return PART.sub(lambda found: f"{found[1]}{generate(*found[2].split())}\n{found[3]}", text)


def generate(name, *arguments):
    """The text of a generated part."""
    return getattr(parts, name)(*arguments) if name in parts.NAMES else parts.target(name, *arguments)


def undocumented():
    """The names of methods and release rules that docs/methods.md does not mention."""
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    return [name for members in method.files().values() for name in members if f"`{name}`" not in text]


def main():
    old = {page: page.read_text(encoding="utf-8") for page in pages()}
    new = {page: with_new_parts(text) for page, text in old.items()}
    outdated = [page for page in old if old[page] != new[page]]
    check = sys.argv[1:] == ["--check"]
    for page in outdated:
        print(f"{page.relative_to(ROOT)}: {'out of date' if check else 'rewritten'}")
        if not check:
            page.write_text(new[page], encoding="utf-8")
    for name in undocumented():
        print(f"docs/methods.md: does not describe the method {name}")
    sys.exit(1 if check and outdated else 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
