"""README.md and docs/: generated parts are up to date, links and commands are valid, and the examples run."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from processes import command
from projects import ROOT, copy_code, script

from study.tables import read_targets
from study.targets import is_folder

MAKE = runpy.run_path(str(ROOT / "docs/make.py"))
PAGES = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in MAKE["pages"]()}
README = PAGES["README.md"]
LINKS = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
FOLDER_FLAGS = ("--save_path", "--normal", "--nasty", "--teacher")
OUTPUTS = ("*=*", "*.tar", "metrics.jsonl", "training.log", "spec.json", "images", "__pycache__")


def commands(text):
    """The commands in the code blocks and in the text of a page, each as a list of words."""
    code = [
        line for block in re.findall(r"```\n(.*?)```", text, re.S) for line in block.replace("\\\n", " ").split("\n")
    ]
    code += [" ".join(inline.split()) for inline in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    parts = [part.strip() for line in code for part in line.split(" && ")]
    found = [shlex.split(part, comments=True) for part in parts if re.match(r"(python|pip) \S", part)]
    return [words for words in found if not any(word.isupper() for word in words)]  # skips placeholders such as TARGET


COMMANDS = sorted({tuple(words) for text in PAGES.values() for words in commands(text)})


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_up_to_date(page):
    assert MAKE["with_new_parts"](PAGES[page]) == PAGES[page], "run: python docs/make.py"


def test_methods_of_the_tables_are_described():
    matrices = [entry for entry in read_targets().values() if "yardstick" in entry]
    used = {keys.get("method", "kd") for entry in matrices for keys in entry["attacks"].values()}
    assert used and not used & set(MAKE["undocumented"]())


def test_make_reports_an_outdated_page(monkeypatch, capsys):
    page = ROOT / "docs/params.md"
    monkeypatch.setitem(MAKE["main"].__globals__, "pages", lambda: [page])
    monkeypatch.setitem(MAKE["main"].__globals__, "generate", lambda *_: "other content")
    monkeypatch.setattr(sys, "argv", ["make.py", "--check"])
    with pytest.raises(SystemExit) as stopped:
        MAKE["main"]()
    assert stopped.value.code == 1 and "docs/params.md: out of date" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == PAGES["docs/params.md"]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_resolve(page, link):
    file, _, anchor = link.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    if anchor:
        assert anchor in anchors(path.read_text(encoding="utf-8"))


def anchors(text):
    """The anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_there_are_commands():
    assert len(COMMANDS) > 20 and {words[1] for words in COMMANDS} >= {"reproduce.py", "results.py", "figures.py"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_name_what_exists(words):
    program, *arguments = words
    if program == "pip" or arguments[0] == "-m":
        files = [word for word in arguments if word.endswith((".txt", ".py"))]
        assert all((ROOT / file).is_file() for file in files)
        return
    name, *arguments = arguments
    assert (ROOT / name).is_file()
    flags = [word for word in arguments if word.startswith("--")]
    known = help_of(name, *arguments[: name == "figures.py"]) if "/" not in name else (ROOT / name).read_text()
    assert [flag for flag in flags if flag not in known] == []
    values = {flag: values_of(flag, arguments) for flag in FOLDER_FLAGS if flag in flags}
    positional = [word for word in values_of(name, words) if not word.startswith("--")]
    if name in ("reproduce.py", "results.py"):
        assert all(is_folder(word) or word in read_targets() for word in positional)
    folders = [folder for found in values.values() for folder in found]
    folders += positional[1:] if name == "figures.py" and positional[0] == "curves" else []
    assert all((ROOT / folder / "params.json").is_file() for folder in folders)


def help_of(name, *subcommand):
    return script(name, *subcommand, "--help").out


def values_of(flag, words):
    """The words after `flag`, up to the next flag."""
    rest = list(words)[list(words).index(flag) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))]


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


EXAMPLES = dict(re.findall(r"^## Add an? \w+: (method/\S+\.py)\n\n```python\n(.*?)```", README, re.M | re.S))


CONTRIBUTE = PAGES["docs/contribute.md"]
NETWORK = re.search(r"^## Add a network\n.*?`(model/\S+\.py)`:\n\n```python\n(.*?)```", CONTRIBUTE, re.M | re.S)


@pytest.mark.slow
def test_the_network_of_the_example_trains(tmp_path):
    """The file in a copy of the project, with the command below it, for one epoch on few images."""
    path, content = NETWORK.groups()
    line = next(words for words in commands(CONTRIBUTE) if f"model_name={Path(path).stem}" in words)
    root = copy_code(tmp_path)
    folder = line[line.index("--save_path") + 1]
    (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / folder / "params.json", root / folder)
    (root / path).write_text(content, encoding="utf-8")
    done = command(root, *line[1:], "num_epochs=1", "subset_percent=0.1")
    assert done.status == 0, done.err
    (run,) = (root / folder).parent.glob(f"*model_name={Path(path).stem}*")
    assert torch.load(run / "last_model.tar", weights_only=True)["state_dict"]["conv.weight"].shape[0] == 16


@pytest.mark.slow
def test_the_examples_of_the_readme_run(tmp_path):
    """Train a teacher with the defence and its student with the attack, in a copy of the project with both files."""
    defence, attack = (Path(path).stem for path in EXAMPLES)
    for name, flag in ((defence, "--rows"), (attack, "--columns")):
        assert ["python", "reproduce.py", "matrix_digits", flag, name] in commands(README)
    root = copy_code(tmp_path)
    shutil.copytree(ROOT / "experiments", root / "experiments", ignore=shutil.ignore_patterns(*OUTPUTS))
    for path, content in EXAMPLES.items():
        (root / path).write_text(content, encoding="utf-8")
    tiny = ["--jobs", "1", "--set", "num_epochs=1", "subset_percent=0.1", "weight=0.2"]
    done = command(root, "reproduce.py", "matrix_digits", "--rows", defence, "--columns", attack, *tiny)
    assert done.status == 0, done.err
    row = next(line.split() for line in done.out.splitlines() if line.startswith(defence))
    assert row[1] == "yours" and float(row[2]) > 0 and attack in row
