"""The report page: no text becomes markup, colours can be read, and a real browser shows it by mouse and keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_run import HOSTILE, SPLITS, JsonTemplate, Visit, with_reasoning

from verl_act.envs.registry import choice_prompt
from verl_act.evaluate.metric_registry import format_value
from verl_act.evaluate.statistics import Estimate
from verl_act.report import plots, write_report
from verl_act.report.content import Content, content
from verl_act.report.page import html, markdown
from verl_act.report.read import read_runs
from verl_act.report.tables import Group
from verl_act.schema import read_pairs
from verl_act.settings.evaluation import ReportSettings

pytest_plugins = "report_run"


def test_charts_are_text_that_scales(page: Path) -> None:
    charts = re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    assert len(charts) == 3 + 2 + 2 + 2 + 2 + 5 + 5
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.get("viewBox") and not root.get("width")
        assert not [element for element in root.iter() if element.get("id") or element.tag.endswith("script")]
        titles = [element for element in root.iter("{http://www.w3.org/2000/svg}title")]
        assert titles and all(re.search(r"\d", element.text or "") for element in titles)


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def oklab(colour: str) -> tuple[float, ...]:
    """In OKLab, where distances are about as large as they look."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    middle = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


def test_colours_can_be_read_light_and_dark(page: Path) -> None:
    light, dark = re.findall(r":root \{(.*?)\n *\}", page.read_text(), re.DOTALL)
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))

        def contrast(one: str, other: str, colours: dict[str, str] = colours) -> float:
            low, high = sorted((luminance(colours[one]), luminance(colours[other])))
            return (high + 0.05) / (low + 0.05)

        for text, ground in (
            *((text, ground) for text in ("ink", "muted", "link", "good", "bad") for ground in ("page", "card")),
            *(("ink", "notice"), ("ink", "soft"), ("muted", "soft"), ("good", "good-soft"), ("bad", "bad-soft")),
            *(("loop", "loop-soft"), ("ink", "loop-soft"), ("bad", "loop-soft"), ("muted", "loop-soft")),
        ):
            assert contrast(text, ground) >= 4.5, f"{text} on {ground}"
        series = [f"series-{number}" for number in range(plots.COLOURS)]
        for name in series:
            assert contrast(name, "card") >= 3, name
        for one, other in combinations(series, 2):
            assert math.dist(oklab(colours[one]), oklab(colours[other])) >= 0.1, f"{one} and {other} look alike"


def test_twelve_models_have_twelve_colours(page: Path) -> None:
    labels = [f"model {number}" for number in range(12)]
    chart = plots.bars(
        "Shares", [Group("success", "split", "all", [Estimate(0.5, 0.4, 0.6, 10, [0.5], None)] * 12)], labels
    )
    used = set(re.findall(r"var\(--series-\d+\)", chart))
    assert len(used) == 12
    defined = re.findall(r"--series-(\d+):", page.read_text())
    assert sorted(map(int, defined)) == sorted([*range(12), *range(12)]), "light and dark"


class Skeleton(HTMLParser):
    """The elements of a page and their attributes' names, and what the scripts hold."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


def skeleton(text: str) -> Skeleton:
    parser = Skeleton()
    parser.feed(text)
    parser.close()
    return parser


def small_run(folder: Path, text: str) -> Path:
    """An evaluation of one episode and one answer of each other kind, with `text` wherever others write."""
    folder.mkdir()
    turn = {"observation": text, "reply": text, "action": text, "admissible_actions": [text]}
    episode = {
        "task_id": text,
        "task_type": text,
        "split": text,
        "end": text,
        "success": 0.0,
        "steps": 1.0,
        "goal": text,
    }
    shares = {"inadmissible_share": 1.0, "malformed_share": 0.0, "longest_failed_repeat": 1.0}
    turns = [{**turn, "malformed": None, "admissible": False}]
    answer = {"split": text, "inferable": True, "reply": text, "well_formed": True, "admissible": True, "right": False}
    choice = {"pair_id": text, "margin": None, "named_a_candidate": False, "expert_position": 0, "order": 0}
    choice |= {"candidates": ["a", "b"], "chosen": None, "consistent": False}
    figures = {"name": text, "model": text, "template": text, "sampling": {}, "metrics": {}}
    for name, record in (
        ("metrics.json", figures),
        ("episodes.jsonl", {**episode, **shares, "turns": turns}),
        ("next_actions.jsonl", {**answer, "state_id": text}),
        ("choices.jsonl", {**answer, **choice}),
        ("reasoning.jsonl", {"item": text, "split": text, "gold": text, "reply": text, "right": False}),
    ):
        (folder / name).write_text(json.dumps(record) + "\n")
    return folder


@pytest.fixture(scope="session")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    folder = small_run(tmp_path_factory.mktemp("harmless") / "run", "text")
    return skeleton(html(content(read_runs([folder]), 4)))


markup = st.one_of(
    st.sampled_from(
        [HOSTILE, "<!--", "]]>", "&lt;script&gt;", "\ud800", "\x00\x1b", "'\"><svg onload=alert(1)>", "{% raw %}"]
    ),
    st.text(alphabet=st.sampled_from("<>/!-&;'\"=script{}% \u2028\n"), min_size=1, max_size=30),
)


@settings(max_examples=15)
@given(text=markup)
def test_no_text_becomes_markup(text: str, harmless: Skeleton, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = small_run(tmp_path_factory.mktemp("hostile") / "run", text)
    whole = content(read_runs([folder]), 4)
    found = skeleton(html(whole).encode(errors="replace").decode())
    assert found.elements == harmless.elements
    data, script = found.scripts
    assert script == harmless.scripts[1]
    assert json.loads(data)["kinds"]["episodes"]["items"][0]["id"].endswith(f"/{text}")
    assert not re.search(r"(?<!\\)<(?!br)", markdown(whole)), "nor in Markdown"


def test_the_page_opens_offline_and_silently(visit: Callable[..., Visit], page: Path) -> None:
    opened = visit()
    assert opened.asked == [page.as_uri()]
    assert "quick<b>start" in opened.tab.title()
    assert opened.tab.locator("article.column").count() == 2
    assert opened.tab.locator("#results table").count() == 6


def test_the_viewer_by_keyboard(visit: Callable[..., Visit]) -> None:
    opened = visit()
    press = opened.tab.keyboard.press
    opened.tab.locator("#view").focus()
    first = opened.tab.locator("#answer .goal").inner_text()
    assert opened.where.startswith("1 of 8; 4 of 12 are left out")
    press("j")
    assert opened.where.startswith("2 of 8")
    assert opened.tab.locator("#answer .goal").inner_text() != first
    press("k")
    press("k")
    assert opened.where.startswith("1 of 8")
    press("Tab")
    assert opened.tab.evaluate("document.activeElement.getAttribute('role')") == "tab"
    press("ArrowRight")
    assert opened.tab.locator("[role=tab][aria-selected=true]").inner_text().startswith("Next actions")
    press("ArrowLeft")
    press("3")
    assert opened.tab.locator("[role=tab][aria-selected=true]").inner_text().startswith("Choices")
    for _ in range(30):
        press("Tab")
        if opened.tab.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    press("Enter")
    assert opened.tab.locator("#answer details[open]").count() == 1
    place = int(opened.where.split(" of ")[0])
    press("j" if place == 1 else "k")
    press("k" if place == 1 else "j")
    assert int(opened.where.split(" of ")[0]) == place, "the keys are heard still, though what had the focus is gone"
    last = int(opened.where.split(" of ")[1].split(";")[0])
    opened.tab.get_by_role("button", name="Next").focus()
    for _ in range(last - place):
        press("Enter")
    press("k")
    assert opened.where.startswith(f"{last - 1} of {last}"), "from a button that is disabled by its last use too"


def test_the_viewer_shows_what_happened(visit: Callable[..., Visit], whole: Content) -> None:
    opened = visit()
    answer = opened.tab.locator("#answer")
    opened.select("Show", "loop")
    assert answer.locator(".turn.loop").count() > 0
    assert re.search(r"loop: same failed action \d+ times", answer.inner_text())
    assert "leaves the expert's path" in answer.inner_text()
    assert re.search(r"the same failed action \d+ more times, to turn 20", answer.inner_text())
    opened.select("Show", "gained")
    for number in range(int(opened.where.split(" of ")[1].split(";")[0])):
        opened.select("Item", str(number))
        left, right = (answer.locator("article").nth(side).inner_text() for side in (0, 1))
        assert "not solved" in left and "not solved" not in right
    opened.tab.get_by_role("tab", name="Choices").click()
    assert answer.locator("article").first.locator("ol.candidates li").count() == 2
    assert "chosen" in answer.inner_text()
    address = opened.tab.url
    again = visit()
    again.tab.goto("about:blank")
    again.tab.goto(address)
    assert again.tab.locator("#answer").inner_text() == answer.inner_text()
    opened.select("Right-hand model", "-1")
    assert answer.locator("article").count() == 1


def test_the_verdict_comes_first_and_the_navigation_stays(visit: Callable[..., Visit], whole: Content) -> None:
    opened = visit(viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    assert opened.tab.locator("main section").first.get_attribute("id") == "verdict"
    assert whole.verdict.sentence in opened.tab.locator("#verdict").inner_text()
    opened.tab.get_by_role("link", name="Pipeline").click()
    navigation = opened.tab.get_by_role("navigation")
    opened.expect(navigation).to_be_in_viewport()
    opened.expect(opened.tab.locator("#pipeline h2")).to_be_in_viewport()
    below = (
        "(title) => title.getBoundingClientRect().top >= document.querySelector('nav').getBoundingClientRect().bottom"
    )
    assert opened.tab.locator("#pipeline h2").evaluate(below), "the navigation does not cover the title"


def test_bars_show_their_numbers_inside_the_chart(visit: Callable[..., Visit], whole: Content) -> None:
    opened = visit()
    chart = opened.tab.locator("#verdict figure svg").first
    values = [
        cell.estimate.value
        for block in whole.blocks
        for row in block.rows
        if row.key == "success"
        for cell in row.cells
    ]
    texts = chart.locator("text").all_text_contents()
    for value in values:
        assert format_value(value, "share") in texts
    inside = """(svg) => { const box = svg.getBoundingClientRect(); return [...svg.querySelectorAll("text")].every(
        (text) => text.getBoundingClientRect().right <= box.right + 1); }"""
    assert chart.evaluate(inside)


def test_the_prompt_is_shown_as_it_was_sent(visit: Callable[..., Visit], run: Path, whole: Content) -> None:
    pairs = {pair.pair_id: pair for pair in read_pairs([run / "pairs" / split / "pairs.parquet" for split in SPLITS])}
    for item in whole.examples[2].items:
        for answer in item["answers"]:
            candidates = [whole.texts[index] for index in answer["candidates"]]
            (message,) = choice_prompt(JsonTemplate(), pairs[item["id"]], candidates)
            assert whole.texts[answer["prompt"]] == f"[{message['role']}]\n{message['content']}"
    opened = visit()
    opened.tab.get_by_role("tab", name="Choices").click()
    prompt = opened.tab.locator("article").first.locator("details", has_text="the prompt as sent")
    prompt.locator("summary").click()
    assert prompt.locator("pre").text_content() in whole.texts


def test_transcripts_can_be_searched(visit: Callable[..., Visit], whole: Content) -> None:
    opened = visit()
    search = opened.tab.get_by_role("searchbox", name="Search")
    search.fill("open DOOR 1")
    count = int(opened.where.split(" of ")[1].split(";")[0])
    shown = [
        item
        for item in whole.examples[0].items
        if any(
            turn["action"] is not None and whole.texts[turn["action"]] == "open door 1"
            for turn in item["answers"][0]["turns"]
        )
    ]
    assert 0 < count == len(shown) < 8
    search.press("j")
    assert search.input_value() == "open DOOR 1j", "keys are letters here"
    assert opened.where.startswith("no match")
    search.fill("")
    assert opened.where.startswith("1 of 8")


def test_hostile_replies_stay_text(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.select("Right-hand model", "1")
    for kind in ("Episodes", "Next actions", "Choices"):
        opened.tab.get_by_role("tab", name=kind).click()
        shown = opened.tab.locator("article").nth(1).inner_text()
        assert '</script><img src="https://example.org/x.png" onerror="window.hacked = 1"><b>bold</b>' in shown
    assert opened.tab.locator("img, #answer script, #answer b b").count() == 0
    assert opened.tab.evaluate("window.hacked") is None


def test_a_narrow_screen_needs_no_sideways_scrolling(visit: Callable[..., Visit], page: Path) -> None:
    opened = visit(viewport={"width": 360, "height": 740})
    fits = """() => [...document.querySelectorAll("body *")].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 1 || box.left < -1)
            && !element.closest("thead, .skip, .sections"); // the navigation scrolls on its own
    }).map((element) => element.tagName + "." + element.getAttribute("class"))"""
    for kind in ("Episodes", "Next actions", "Choices"):
        opened.tab.get_by_role("tab", name=kind).click()
        opened.tab.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
        assert opened.tab.evaluate(fits) == []
        assert opened.tab.evaluate("document.documentElement.scrollWidth") == 360
    columns = opened.tab.locator("article.column")
    assert [columns.nth(side).is_visible() for side in (0, 1)] == [True, False], "one model at a time"
    opened.tab.locator(".switch button").nth(1).click()
    assert [columns.nth(side).is_visible() for side in (0, 1)] == [False, True]


def test_one_column_is_always_shown_on_a_narrow_screen(visit: Callable[..., Visit]) -> None:
    opened = visit(viewport={"width": 360, "height": 740})
    columns = opened.tab.locator("article.column:visible")
    opened.tab.locator(".switch button").nth(1).click()
    for alone in ("-1", "0"):
        opened.select("Right-hand model", alone)
        assert columns.count() == 1 and columns.get_attribute("aria-label") == "initial"
        opened.select("Right-hand model", "2")
        assert columns.get_attribute("aria-label") == "action"


def test_the_address_changes_by_what_a_reader_does_alone(visit: Callable[..., Visit], page: Path) -> None:
    opened = visit()
    assert opened.tab.url == page.as_uri()
    opened.tab.reload()
    assert opened.tab.evaluate("scrollY") == 0
    opened.tab.goto(f"{page.as_uri()}#pipeline")
    assert opened.tab.url.endswith("#pipeline")
    assert opened.where.startswith("1 of 8")
    opened.tab.get_by_role("button", name="Next").click()
    assert "#kind=episodes&id=" in opened.tab.url


def test_links_to_answers_work_in_an_open_page(visit: Callable[..., Visit], page: Path) -> None:
    opened, other = visit(), visit()
    goal = opened.tab.locator("#answer .question")
    first = goal.inner_text()
    other.tab.get_by_role("tab", name="Choices").click()
    other.select("Item", "3")
    link = other.tab.url
    opened.select("Show", "wrong")
    filtered, place = goal.inner_text(), opened.where
    opened.tab.goto(link)
    assert goal.inner_text() == other.tab.locator("#answer .question").inner_text()
    opened.expect(opened.tab.locator("#view .tabs")).to_be_in_viewport()
    opened.tab.go_back()
    assert (goal.inner_text(), opened.where) == (filtered, place)
    other.tab.get_by_role("link", name="Pipeline").click()
    assert opened.tab.get_by_role("combobox", name="Show").input_value() == "wrong"
    assert other.where.startswith("4 of 8"), "another part of the page leaves the viewer as it is"
    fresh = visit()
    fresh.tab.goto(link)
    fresh.tab.go_back()
    assert fresh.tab.url == page.as_uri() and fresh.tab.locator("#answer .question").inner_text() == first


def test_the_viewer_and_what_scrolls_have_a_role_and_a_name(visit: Callable[..., Visit], tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", "text")
    path = folder / "episodes.jsonl"
    record = json.loads(path.read_text())
    (turn,) = record["turns"]
    replies = ("short", "line\n" * 60, "word " * 320)
    path.write_text(json.dumps({**record, "turns": [{**turn, "reply": reply} for reply in replies]}) + "\n")
    opened = visit(write_report(ReportSettings(runs=[folder]), tmp_path / "report.html")[0])
    assert opened.tab.get_by_role("group", name="Answers").get_attribute("id") == "view"
    boxes = opened.tab.locator(".reply")
    opened.tab.get_by_role("group", name="Reply").wait_for()
    scrolling = "(box) => [box.scrollHeight > box.clientHeight, box.tabIndex, box.getAttribute('role')]"
    assert [boxes.nth(number).evaluate(scrolling) for number in range(3)] == [
        [False, -1, None],
        [True, 0, "group"],
        [False, -1, None],
    ]
    opened.tab.set_viewport_size({"width": 360, "height": 740})
    opened.expect(boxes.nth(2)).to_have_attribute("tabindex", "0")


def test_settings_can_be_scrolled_by_keys(visit: Callable[..., Visit]) -> None:
    opened = visit()
    boxes = opened.tab.locator("#pipeline pre")
    assert boxes.count() > 5
    for number in range(boxes.count()):
        names = [boxes.nth(number).get_attribute(name) for name in ("tabindex", "role")]
        assert names == ["0", "group"] and (boxes.nth(number).get_attribute("aria-label") or "").startswith("Settings")


def test_general_reasoning_can_be_looked_at(visit: Callable[..., Visit], run: Path, tmp_path: Path) -> None:
    opened = visit(write_report(ReportSettings(runs=[with_reasoning(run, tmp_path)]), tmp_path / "report.html")[0])
    opened.tab.locator("#view").focus()
    opened.tab.keyboard.press("4")
    assert opened.tab.locator("[role=tab][aria-selected=true]").inner_text() == "General reasoning (8)"
    answer = opened.tab.locator("#answer")
    opened.select("Show", "gained")
    shown = answer.inner_text()
    assert re.search(r"[ab]: What is [02] \+ 1\?", shown) and re.search(r"expected answer: [13]", shown)
    left, right = (answer.locator("article").nth(side).inner_text() for side in (0, 1))
    assert "wrong" in left and "right" in right and f"{HOSTILE.splitlines()[0]}" in left.replace("\u2028", "")
    assert answer.locator("img, script").count() == 0
    options = opened.tab.get_by_role("combobox", name="Show").locator("option").all_inner_texts()
    assert "with a malformed reply" not in options and "with a loop" not in options
    opened.select("Left-hand model", "1")
    opened.select("Show", "")
    assert "This model was not evaluated on this item." in answer.inner_text()


def test_dark_readers_get_a_dark_page(visit: Callable[..., Visit]) -> None:
    grounds = {
        scheme: visit(color_scheme=scheme).tab.evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert grounds == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 24, 27)"}


def test_without_script_the_numbers_are_there(visit: Callable[..., Visit]) -> None:
    opened = visit(java_script_enabled=False)
    assert opened.tab.locator("#results table").count() == 6
    assert "need JavaScript" in opened.tab.locator("#viewer").inner_text()
