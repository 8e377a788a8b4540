"""The leaderboard: texts, bars, escaping of untrusted texts, and its appearance in a browser."""

import base64
import copy
import fcntl
import json
import os
import random
import re
import select
import shutil
import statistics
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from processes import command

from study import leaderboard, page

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = '"><script>hacked = 1</script><img src=https://evil.example/x onerror="hacked = 1">\'|`*_$'


# A headless Chromium, controlled by the DevTools protocol: JSON messages over pipes, ended by a zero byte

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
# Chromium reads commands from file descriptor 3 and answers on 4
START = (
    "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
SECONDS = 60


class Browser:
    """One tab of the browser. events: all events that it reported, such as requests and errors."""

    def __init__(self, profile):
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (*os.pipe(), *os.pipe())]  # numbers above 3 and 4
        command = [sys.executable, "-c", START, str(pipes[0]), str(pipes[3])]
        command += [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(pipes[0], pipes[3]), stderr=subprocess.DEVNULL)
        os.close(pipes[0]), os.close(pipes[3])
        self.answers, self.commands, self.read, self.number = pipes[2], pipes[1], b"", 0
        self.events, self.session = [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self):
        end = time.monotonic() + SECONDS
        while b"\0" not in self.read:
            ready, _, _ = select.select([self.answers], [], [], max(0, end - time.monotonic()))
            assert ready, f"Chromium did not answer within {SECONDS} s"
            part = os.read(self.answers, 1 << 16)
            assert part, "Chromium ended"
            self.read += part
        message, _, self.read = self.read.partition(b"\0")
        return json.loads(message)

    def open(self, address):
        """Load a page and return when its scripts have run."""
        self.events.clear()
        self.send("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def resize(self, width, height=800):
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def run(self, script):
        """Return the value of a JavaScript expression, or of the promise that it returns."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def errors(self):
        """Exceptions, and the errors and warnings in the log, such as refused scripts and styles."""
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        thrown = [e["params"]["exceptionDetails"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        return thrown + [entry for entry in logged if entry["level"] in ("error", "warning")]

    def requests(self):
        """The addresses that the page requested."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path):
        picture = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self):
        try:
            self.send("Browser.close")
        finally:
            self.process.wait(SECONDS)
            os.close(self.answers), os.close(self.commands)


# Cards


def interval(mean, half=0.5):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 3}


def card(defence, mean, preset="few", half=0.5, price=0.25, **changes):
    """A card with the score `mean` ± `half`. `changes` replace fields."""
    verdict = "does not hold" if mean <= half else "holds" if price <= 1 else "holds, at a price"
    accuracy = [70.0, 71.5, 72.25]
    return {
        "protocol": 1,
        "benchmark": "benchmark_digits",
        "defence": defence,
        "preset": preset,
        "source": "Ma et al., ICLR 2021",
        "reported": None,
        "seeds": [0, 1, 2],
        "teacher": {
            "settings": {"weight": 0.15},
            "accuracy": [98.75 - price] * 3,
            "undefended": [98.75] * 3,
            "price": interval(price),
            "weights": ["01ab", "02cd", "03ef"],
        },
        "thief": {
            "attack": "kd",
            "settings": {"temperature": 20, "alpha": 0.5},
            "accuracy": accuracy,
            "agreement": [60.0, 61.0, 62.5],
            "queries": 12345,
        },
        "passive": {"attack": "kd", "settings": {"temperature": 4}, "accuracy": accuracy},
        "yardstick": {"settings": {"label_smoothing": 0.1}, "accuracy": [value + mean for value in accuracy]},
        "alone": {"settings": {}, "accuracy": accuracy},
        "label smoothing": {"settings": {"label_smoothing": 0.1}, "accuracy": accuracy},
        "score": interval(mean, half),
        "effect": interval(0.5),
        "gap": interval(0.75),
        "verdict": verdict,
        "flags": [],
        "draws": 27,
        "commit": "abc1234",
        "environment": "torch 2, CPU",
        "records": "results/benchmark_digits.jsonl",
        "digest": "5f5f",
    } | changes


CARDS = [
    card("possessive", -2.5, price=1.75),
    card("nasty", 1.25),
    card("stingy", 2.0, price=1.5, flags=["the optimum lies at the edge of the search space"]),
    card("sdb", 3.0, verdict="not shown", flags=["the normal teacher does not help its student"]),
    card("nasty", -7.125, preset="insider", half=2.0),
    card("stingy", 0.75, preset="insider", half=1.0),
]


class Page(HTMLParser):
    """Collects all elements of a page as (tag, attributes), and the texts outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.raw = [], [], None
        self.feed(text)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.raw = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.raw = None

    def handle_data(self, data):
        if not self.raw:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def hostile(value):
    """The fields of a card in which HOSTILE replaces each text and each name of a setting."""
    if isinstance(value, dict):
        names = {name: HOSTILE if name in ("weight", "temperature") else name for name in value}
        return {names[name]: hostile(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def hostile_card():
    return hostile(card("nasty", 1.0, flags=["flag"], reported="reported")) | {
        "protocol": HOSTILE,
        "seeds": [HOSTILE] * 3,
    }


def test_texts_of_a_card_stay_texts():
    plain, attacked = Page(page.make_html([card("nasty", 1.0, flags=["f"])])), Page(page.make_html([hostile_card()]))
    assert len(attacked.all("script")) == 1 and not attacked.all("img")
    usual, names = ({(tag, name) for tag, all in found.elements for name in all} for found in (plain, attacked))
    assert names <= usual  # no element has attributes that an ordinary page does not have
    assert attacked.text.count("<script>hacked = 1</script>") > 15  # shown as text


def test_texts_of_a_card_stay_texts_in_markdown():
    text = leaderboard.make_markdown([hostile_card()])
    row = text.splitlines()[-1]
    assert "<" not in row.replace("&lt;", "") and re.search(r"(?<!\\)[`$]", row) is None
    assert len(cells(row)) == 11


@pytest.mark.parametrize(
    "path", ["javascript:alert(1)", "//evil.example/x", "/etc/passwd", "https://evil.example", "a b", ""]
)
def test_records_that_are_no_relative_path_are_no_link(path):
    cards = [card("nasty", 1.0, records=path)]
    assert all(link["href"].startswith("#") for link in Page(page.make_html(cards)).all("a"))
    assert "](" not in leaderboard.make_markdown(cards)


def test_a_card_without_records_or_source_is_shown():
    one = card("none", -1.0, source=None)
    del one["records"]
    assert "None" not in Page(page.make_html([one])).text and "(None)" not in leaderboard.make_markdown([one])


def test_records_are_linked_from_the_folder_of_the_page():
    links = [link["href"] for link in Page(page.make_html(CARDS, root="../")).all("a")]
    assert links.count("../results/benchmark_digits.jsonl") == len(CARDS)
    assert leaderboard.make_markdown(CARDS, root="../").count("](../results/benchmark_digits.jsonl)") == len(CARDS)


def test_nothing_is_loaded_from_elsewhere():
    text = page.make_html(CARDS)
    assert not re.search(r"https?:|url\(|@import|\bsrc=|<link|<iframe|fetch\(|XMLHttpRequest|\bimport\b", text)
    policy = next(meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy


def test_same_cards_give_same_bytes(tmp_path):
    shuffled = [dict(sorted(one.items(), reverse=True)) for one in random.Random(0).sample(CARDS, len(CARDS))]
    for make in (page.make_html, leaderboard.make_markdown):
        assert make(shuffled) == make(CARDS)
    (tmp_path / "cards.json").write_text(json.dumps(CARDS))
    code = "import json, sys; from study import page; print(page.make_html(json.load(open(sys.argv[1]))), end='')"
    code += "; print(hash('x'), file=sys.stderr)"
    (tmp_path / "print.py").write_text(code)
    # In the process of the command, sets have another order, because it has another seed of Python's hashes.
    done = command(ROOT, tmp_path / "print.py", tmp_path / "cards.json", PYTHONUTF8="1")
    assert done.status == 0 and done.out == page.make_html(CARDS)
    if "PYTHONHASHSEED" not in os.environ:
        assert int(done.err) != hash("x")


def test_presets_in_the_order_of_the_protocol_and_cards_by_score():
    before = copy.deepcopy(CARDS)
    found = leaderboard.groups([*CARDS, card("x", 1.0, preset="zeta"), card("x", 1.0, preset="alpha")])
    assert list(found) == ["insider", "few", "alpha", "zeta"]
    names = [one["defence"] for one in found["few"]["benchmark_digits, protocol v1"]]
    # The scores are +2, +1.25, −2.5, and +3 with the verdict "not shown".
    assert names == ["stingy", "nasty", "possessive", "sdb"]
    assert before == CARDS


def test_benchmarks_and_protocols_are_not_ranked_together():
    cards = [card("a", 1.0), card("b", 2.0, benchmark="other"), card("c", 3.0, protocol=2)]
    assert list(leaderboard.groups(cards)["few"]) == [
        "benchmark_digits, protocol v1", "benchmark_digits, protocol v2", "other, protocol v1",
    ]  # fmt: skip


def test_bars_and_whiskers_lie_where_the_axis_says():
    drawings = re.findall(r'<svg class="bar".*?</svg>', page.make_html(CARDS))
    expected = [one for tables in leaderboard.groups(CARDS).values() for cards in tables.values() for one in cards]
    assert len(drawings) == len(expected)
    for drawing, one in zip(drawings, expected, strict=True):
        ticks = [
            (float(label.replace("−", "-")), float(x))
            for x, label in re.findall(r'<text x="(.*?)%".*?>(.*?)<', drawing)
        ]
        (first, left), (last, right) = ticks[0], ticks[-1]
        assert (left, right) == (0, 100) and first <= 0 <= last

        def score(x, left=first, width=last - first):
            return left + float(x) / 100 * width

        for label, x in ticks:
            assert score(x) == pytest.approx(label, abs=0.01)
        ((x, width),) = re.findall(r'<rect x="(.*?)%" width="(.*?)%"', drawing)
        ends = sorted([0, one["score"]["mean"]])
        assert [score(x), score(float(x) + float(width))] == pytest.approx(ends, abs=0.01)
        lines = re.findall(r'<line class="whisker" x1="(.*?)%" x2="(.*?)%"', drawing)
        low, high = one["score"]["low"], one["score"]["high"]
        assert [score(x) for x in sum(lines, ())] == pytest.approx([low, high, low, low, high, high], abs=0.01)
        zero = re.findall(r'<line class="zero" x1="(.*?)%"', drawing)
        assert [score(x) for x in zero] == pytest.approx([0], abs=0.01)


@pytest.mark.parametrize("scores", [[0.0], [0.004], [-60.0, 41.0], [3.0], [-0.2]])
def test_axis_holds_zero_and_every_interval_with_few_round_ticks(scores):
    low, high, step = leaderboard.make_axis([card("x", score, half=0.0) for score in scores])
    assert low <= min([0, *scores]) and max([0, *scores]) <= high and low < high
    assert 1.99 <= (high - low) / step <= 8.01
    assert f"{step:e}"[0] in "125"


def test_a_single_seed_has_no_whisker_and_a_missing_score_no_bar():
    single = card("x", 1.0, score={"mean": 1.0, "low": None, "high": None, "n": 1})
    text = page.make_html([single])
    assert "+1.00" in text and "[–, –], n = 1" in text and "<rect" in text and 'class="whisker"' not in text
    empty = card("x", 1.0, score={"mean": None, "low": None, "high": float("nan"), "n": 0}, gap=None, passive=None)
    text = page.make_html([empty])
    assert "<rect" not in text and 'class="whisker"' not in text and "nan" not in text


def test_the_page_says_all_that_a_card_holds():
    one = card("nasty", 1.25, reported="student loses 3 points", flags=["first flag", "second flag"])
    text = Page(page.make_html([one])).text
    for part in (
        "holds (v1, few)", "+1.25 [+0.75, +1.75], n = 3", "+0.50 [0.00, +1.00]", "+0.25 [−0.25, +0.75]",
        "+0.75 [+0.25, +1.25]", "71.25",
        "61.17", "kd: alpha 0.5, temperature 20", "first flag", "second flag", "student loses 3 points", "12345", "27",
        "abc1234", "torch 2, CPU", "01ab, 02cd, 03ef", "5f5f", "label_smoothing 0.1", "weight 0.15", "98.50", "98.75",
        "72.25", "Seed 2", "protocol v1", "Ma et al., ICLR 2021", "at most 1 point on average", "How to read the score",
    ):  # fmt: skip
        assert part in text, part


def cells(row):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_markdown_equals_the_cards():
    lines = leaderboard.make_markdown(CARDS).splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ") and "benchmark_digits.jsonl" in line]
    order = [
        ("insider", "stingy"),
        ("insider", "nasty"),
        *(("few", name) for name in ("stingy", "nasty", "possessive", "sdb")),
    ]
    by_name = {(one["preset"], one["defence"]): one for one in CARDS}
    assert len(rows) == len(order)
    for row, name in zip(rows, order, strict=True):
        one = by_name[name]
        assert row[0] == f"{name[1]} (Ma et al., ICLR 2021)" and row[1] == f"**{one['verdict']}** (v1, {name[0]})"
        intervals = one["score"], one["effect"], one["teacher"]["price"], one["gap"]
        for shown, value in zip(row[2:6], intervals, strict=True):
            numbers = [float(text) for text in re.findall(r"[+-]?\d+\.\d+", shown.replace("−", "-"))]
            assert numbers == pytest.approx([value["mean"], value["low"], value["high"]], abs=0.00501)
        assert float(row[6]) == pytest.approx(statistics.mean(one["thief"]["accuracy"]), abs=0.005)
        assert float(row[7]) == pytest.approx(statistics.mean(one["thief"]["agreement"]), abs=0.005)
        assert row[8:] == [
            "kd: alpha 0.5, temperature 20", "; ".join(one["flags"]),
            "[results/benchmark_digits.jsonl](results/benchmark_digits.jsonl)",
        ]  # fmt: skip
    assert '6 cards: 1 "holds", 1 "holds, at a price", 3 "does not hold", 1 "not shown".' in lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234, "+1.23"),
        (-1.235, "−1.24"),
        (0.0, "0.00"),
        (-0.001, "0.00"),
        (None, "–"),
        (float("inf"), "–"),
        ("<b>", "–"),
    ],
)
def test_numbers(value, text):
    assert leaderboard.number(value, "+") == text


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_of_wcag_aa_in_both_colour_schemes():
    css = (ROOT / "study" / "page.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        pairs = [(text, back) for text in ("text", "soft", "link") for back in ("page", "panel")]
        pairs += [(name, f"{name}-back") for name in ("holds", "price", "fails", "void")] + [("panel", "link")]
        for pair in pairs:
            dark, light = sorted(luminance(colours[name]) for name in pair)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def show(browser, folder, cards, fragment="", width=1280):
    file = folder / "leaderboard.html"
    file.write_text(page.make_html(cards), encoding="utf-8")
    browser.resize(width)
    browser.open("about:blank")
    browser.open(file.as_uri() + fragment)
    return file.as_uri()


VISIBLE = "[...document.querySelectorAll('section.preset')].filter(s => s.offsetHeight > 0).map(s => s.id)"
DEFENCES = (
    "[...document.querySelectorAll('#few .board > tbody > tr:first-child > th')].map(th => th.firstChild.textContent)"
)


def header(name):
    return f"[...document.querySelectorAll('#few th[data-sort]')].find(th => th.textContent.startsWith('{name}'))"


def test_browser_chooses_presets_sorts_and_opens_details(browser, tmp_path):
    cards = [*CARDS, card("normal", 0.0, gap=None)]
    address = show(browser, tmp_path, cards)
    assert browser.run("document.title") == "Leaderboard of defences against distillation"
    assert browser.run(VISIBLE) == ["insider", "few"]
    browser.run("document.querySelector('nav a[href=\"#few\"]').click()")
    browser.run("new Promise(requestAnimationFrame)")
    assert browser.run(VISIBLE) == ["few"]
    assert browser.run("document.querySelector('nav [aria-current]').textContent") == "few"

    assert browser.run(DEFENCES) == ["stingy", "nasty", "normal", "possessive", "sdb"]
    states = {}
    for name, clicks in (("Price", 1), ("Price", 1), ("Score", 2), ("Gap", 1), ("Defence", 1), ("Verdict", 1)):
        for _ in range(clicks):
            browser.run(f"{header(name)}.querySelector('button').click()")
        states[name, browser.run(f"{header(name)}.getAttribute('aria-sort')")] = browser.run(DEFENCES)
        assert browser.run("document.querySelectorAll('#few .board > thead th:not([aria-sort=none])').length") == 1
    assert states["Price", "descending"][:2] == ["possessive", "stingy"]
    assert states["Price", "ascending"][-2:] == ["stingy", "possessive"]
    assert states["Score", "ascending"] == ["possessive", "normal", "nasty", "stingy", "sdb"]
    assert states["Gap", "descending"][-1] == "normal"  # a card without a gap is last
    assert states["Defence", "ascending"] == ["nasty", "normal", "possessive", "sdb", "stingy"]
    assert states["Verdict", "ascending"] == ["normal", "possessive", "nasty", "stingy", "sdb"]

    details = "document.querySelector('#few details')"
    assert browser.run(f"{details}.open") is False
    browser.run("document.querySelector('#few tbody > tr').click()")
    assert browser.run(f"{details}.open && {details}.querySelector('dl').offsetHeight > 0") is True
    browser.run("document.querySelector('nav a[href=\"#all\"]').click()")
    browser.run("new Promise(requestAnimationFrame)")
    assert browser.run(VISIBLE) == ["insider", "few"]
    assert browser.errors() == [] and {url.partition("#")[0] for url in browser.requests()} == {address}


def test_browser_opens_an_address_with_a_preset(browser, tmp_path):
    show(browser, tmp_path, CARDS, "#insider")
    assert browser.run(VISIBLE) == ["insider"] and browser.errors() == []


@pytest.mark.parametrize("width", [320, 360, 768, 1153, 1280])
def test_browser_never_scrolls_the_page_sideways(browser, tmp_path, width):
    long = card(
        "a_defence_with_a_very_long_name_" * 3, 1.0, preset="label_only", half=12.5, price=2, flags=["flag " * 40]
    )
    long["thief"]["settings"] = {f"setting_number_{index}": 0.123456789 for index in range(12)}
    show(browser, tmp_path, [*CARDS, long, hostile_card()], width=width)
    browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    # A wider page would make phones zoom out.
    assert browser.run("Math.max(innerWidth, document.documentElement.scrollWidth)") <= width


def test_browser_shows_everything_without_javascript(browser, tmp_path):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        show(browser, tmp_path, CARDS, width=360)
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("document.documentElement.className") == ""
    assert browser.run(VISIBLE) == ["insider", "few"] and browser.run("document.querySelector('button')") is None


def test_browser_runs_no_script_of_a_card(browser, tmp_path):
    address = show(browser, tmp_path, [hostile_card()])
    assert browser.run("typeof hacked") == "undefined" and browser.errors() == []
    assert {url for url in browser.requests()} == {address}
    browser.run("{const s = document.createElement('script'); s.textContent = 'hacked = 1'; document.body.append(s)}")
    assert browser.run("typeof hacked") == "undefined"  # the policy also refuses scripts that are not escaped
    assert any("Content Security Policy" in error["text"] for error in browser.errors())
