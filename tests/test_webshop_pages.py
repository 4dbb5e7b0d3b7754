"""WebShop's pages: their texts in every style, and what searches and clicks lead to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from small_shop import TEAPOT, opened, write_shop

from verl_act.envs.base import StepResult
from verl_act.envs.contract import NONSENSE
from verl_act.envs.webshop.catalogue import load_catalogue
from verl_act.envs.webshop.session import Page, ShopState, clickables, follow, is_search

pytest_plugins = "small_shop"

INSTRUCTION = "Instruction: [SEP] i want a lead free teapot in green, and price lower than"


def said(observation: str) -> list[str]:
    return observation.split(" [SEP] ")


def test_pages_read_as_webshop_prints_them(shop: Path) -> None:
    environment, first = opened(shop)
    instruction = said(first)[2]
    head = ["Instruction:", instruction, "Back to Search"]
    assert said(first) == ["WebShop", "Instruction:", instruction, "Search"]
    assert first.startswith(f"WebShop [SEP] {INSTRUCTION}")
    results = environment.step("search[Teapot]")
    teapot = ["B00TEAPOT1", "Blue Mountain Stoneware Teapot with Lid", "$24.5"]
    assert said(results.observation) == [*head, "Page 1 (Total results: 1)", "Next >", *teapot]
    assert results.admissible_actions == ("click[back to search]", "click[next >]", "click[b00teapot1]")
    item = environment.step("click[B00TEAPOT1]")
    buttons = ["Price: $24.5", "Rating: N.A.", "Description", "Features", "Reviews", "Buy Now"]
    assert said(item.observation) == [*head, "< Prev", "color", "blue | white", "green", teapot[1], *buttons]
    names = ("back to search", "< prev", "description", "features", "reviews", "buy now", "blue | white", "green")
    assert item.admissible_actions == tuple(f"click[{name}]" for name in names)
    for name, texts in {
        "description": ["A pot for four cups."],
        "features": ["dishwasher safe", "made by hand"],
        "reviews": [],
    }.items():
        shown = environment.step(f"click[{name}]")
        assert said(shown.observation) == [*head, "< Prev", *texts]
        assert shown.admissible_actions == ("click[back to search]", "click[< prev]")
        assert environment.step("click[< prev]") == item
    environment.step("click[green]")
    bought = environment.step("click[buy now]")
    assert bought.observation.startswith("Thank you for shopping with us! [SEP] Your code: [SEP] None")
    assert '[SEP] options [SEP] {"color": "green"} [SEP] attrs' in bought.observation
    assert bought.observation.endswith("Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None")
    assert (bought.reward, bought.done, bought.success, bought.admissible_actions) == (1.0, True, True, ())
    assert environment.step("click[back to search]") == StepResult(bought.observation, (), 0.0, True, True, False)


def test_results_have_pages_of_ten(shop: Path) -> None:
    environment, first = opened(shop)
    one = environment.step("search[mug]")
    assert "Page 1 (Total results: 14)" in one.observation and one.observation.count("$100.0") == 10
    two = environment.step("click[next >]")
    assert "Page 2 (Total results: 14) [SEP] < Prev [SEP] Next >" in two.observation
    assert two.observation.count("$100.0") == 4
    three = environment.step("click[next >]")
    assert three.observation.endswith("Page 3 (Total results: 14) [SEP] < Prev [SEP] Next >")
    assert environment.step("click[< prev]") == two
    environment.step("click[b00000mugd]")
    assert environment.step("click[< prev]") == two
    assert environment.step("click[back to search]").observation == first
    empty = environment.step("search[zeppelin]")
    assert empty.observation.endswith("Page 1 (Total results: 0) [SEP] Next >")


def test_choices_are_forgotten_when_the_page_is_left(shop: Path) -> None:
    environment, _ = opened(shop)
    for action in ("search[teapot]", "click[b00teapot1]", "click[green]", "click[features]", "click[< prev]"):
        environment.step(action)
    assert environment.plan() == ("click[buy now]",)
    environment.step("click[blue | white]")
    assert environment.plan() == ("click[green]", "click[buy now]")
    environment.step("click[green]")
    environment.step("click[< prev]")
    environment.step("click[b00teapot1]")
    assert environment.plan() == ("click[green]", "click[buy now]")


def test_the_rich_style_marks_buttons_and_what_was_clicked(shop: Path) -> None:
    environment, _ = opened(shop, observation="text_rich")
    results = environment.step("search[teapot]").observation
    assert "[button] Next > [button_]\n\n[button] B00TEAPOT1 [button_]\nBlue Mountain" in results
    environment.step("click[b00teapot1]")
    item = environment.step("click[green]").observation
    assert item.startswith("You have clicked green.\nInstruction:\n")
    assert "  [button] blue | white [button_]\n  [clicked button] green [clicked button_]\n" in item
    assert "\n[clicked button] B00TEAPOT1 [clicked button_]\n" in environment.step("click[< prev]").observation


def test_the_brief_style_leaves_the_instruction_out(shop: Path) -> None:
    environment, first = opened(shop, observation="brief")
    assert first == "WebShop [SEP] Search"
    assert environment.step("search[teapot]").observation.startswith("Back to Search [SEP] Page 1")


@pytest.mark.parametrize(
    "action",
    [
        *NONSENSE,
        "search[]",
        "search[tea [pot] x]",
        "search[teapot] click[next >]",
        "search[teapot",
        "Search[teapot]",
        " search[teapot]",
        "search[].",
        "search[tea\npot]",
        "\nsearch[teapot]",
        "search[\ud83d]",
        f"search[{' '.join(map(str, range(1025)))}]",
        "search[" * 200_000,
        "[" * 1_000_000 + "]" * 1_000_000,
        "click[]",
        "click[search]",
        "click[green]",
        "click[b00teapot1]",
        "click[buy now]",
        f"click[{'b' * 1_000_000}]",
        "click[" + "İ" * 300_000 + "]",
    ],
    ids=lambda action: repr(action[:20]),
)
def test_what_is_no_action_here_shows_the_same_page(action: str, shop: Path) -> None:
    environment, first = opened(shop)
    started = time.perf_counter()
    result = environment.step(action)
    assert time.perf_counter() - started < 2
    assert (result.observation, result.reward, result.done, result.admissible) == (first, 0.0, False, False)


def test_a_search_is_admissible_on_every_page_and_a_click_in_any_case(shop: Path) -> None:
    environment, _ = opened(shop)
    for action in ("search[Tea-Pot & co.]", "search[teapot]", "click[B00TeaPot1]", "click[FEATURES]", "search[mug]"):
        assert environment.step(action).admissible, action


@pytest.mark.parametrize(
    ("search", "hits"),
    [
        ("search[ ]", 0),
        ("search[  ]", 0),
        ("search[x]", 0),
        ("search[teapot] mug]", 15),
        ("search[teapot\x00 \x07]", 1),
        ("search[teapot\u200b]", 1),
        ("search[teapot\r]", 1),
        (f"search[{'teapot ' * 20_000}]", 1),
        (f"search[{' '.join(map(str, range(1024)))} ]", 0),
        (f"search[{'x' * 2000}]", 0),
    ],
    ids=lambda value: repr(value)[:25],
)
def test_searches_are_taken_as_webshop_takes_them(search: str, hits: int, shop: Path) -> None:
    """As its `parse_action`, `step` and Lucene do: any text of up to 1,024 different terms, but no opening bracket."""
    environment, _ = opened(shop)
    result = environment.step(search)
    assert result.admissible and is_search(search)
    assert f"Page 1 (Total results: {hits})" in result.observation


@pytest.mark.parametrize(
    ("value", "clickable", "shown_as_clicked"),
    [
        ("red", True, True),
        ('6" round', True, False),
        ("café", True, False),
        ("back\\slash", True, False),
        ("tab\there", True, False),
        ("men's & co", True, True),
        ("red | ", True, True),
        ("a]b", True, True),
        ("10 [pack", False, False),
        ("two\nlines", False, False),
        ("search", False, False),
        ("buy now", False, False),
        ("next >", True, True),
    ],
)
def test_options_are_clicked_and_shown_as_in_webshop(
    value: str, clickable: bool, shown_as_clicked: bool, tmp_path: Path
) -> None:
    """A value is shown as clicked where it stands in quotes in the page's address, JSON with its escapes."""
    options = {"color": [{"value": value.replace(" | ", "/")}, {"value": "other"}]}
    shop = write_shop(tmp_path, [{**TEAPOT, "customization_options": options}])
    environment, _ = opened(shop, observation="text_rich")
    environment.step("search[teapot]")
    item = environment.step("click[b00teapot1]")
    assert f"  [button] {value} [button_]\n" in item.observation
    action = f"click[{value}]"
    assert (action in item.admissible_actions) == (clickable or value == "buy now")
    if value == "buy now":
        assert environment.step(action).done
        return
    clicked = environment.step(action)
    assert clicked.admissible == clickable
    assert (f"You have clicked {value}.\n" in clicked.observation) == shown_as_clicked
    assert (f"  [clicked button] {value} [clicked button_]\n" in clicked.observation) == shown_as_clicked


def test_what_the_search_quotes_is_shown_as_clicked(shop: Path) -> None:
    environment, _ = opened(shop, observation="text_rich")
    environment.step('search[teapot "green"]')
    item = environment.step("click[b00teapot1]").observation
    assert item.startswith("You have clicked green.\n") and environment.plan() == ("click[green]", "click[buy now]")


def test_spaces_and_empty_texts_are_as_beautifulsoup_leaves_them(tmp_path: Path) -> None:
    texts = {"full_description": " \n ", "small_description": ["", "\n", " two\n lines"]}
    options = {"color": [{"value": "men's"}]}
    shop = write_shop(tmp_path, [{**TEAPOT, **texts, "customization_options": options}])
    environment, first = opened(shop, observation="text_rich")
    assert first.startswith("WebShop\nInstruction: \ni want")
    assert environment.step("search[teapot]").observation.startswith("Instruction:\ni want")
    environment.step("click[b00teapot1]")
    tail = "[button] < Prev [button_]\n"
    assert environment.step("click[description]").observation.endswith(tail)
    environment.step("click[< prev]")
    assert environment.step("click[features]").observation.endswith(f"{tail} \n  two\n lines\n")
    environment.step("click[< prev]")
    environment.step("click[men's]")
    receipt = environment.step("click[buy now]").observation
    assert "\nYour code: \nNone\n (Paste it in your MTurk interface.)\n" in receipt
    assert '\n{"color": "men\\u0027s"}\n' in receipt and receipt.endswith("\nReward Details \nNone\n")


@pytest.mark.parametrize("end", [".", "\n", " - I look for a teapot.", "\nThought: [done]", "\r\n", "." * 1_000_000])
def test_what_stands_after_an_action_is_left_out(end: str, shop: Path) -> None:
    (environment, _), (other, _) = opened(shop), opened(shop)
    for action in ("search[teapot]", "click[b00teapot1]", "click[blue | white]"):
        result = environment.step(f"{action}{end}")
        assert result.admissible and result == other.step(action)
        assert is_search(f"{action}{end}") == is_search(action) == action.startswith("search")


def test_options_that_share_a_value_or_a_button_s_name_go_to_the_later_one(tmp_path: Path) -> None:
    options = {"color": [{"value": "red"}, {"value": "Buy Now"}], "trim": [{"value": "Red"}]}
    shop = write_shop(tmp_path, [{**TEAPOT, "customization_options": options}])
    catalogue = load_catalogue(shop)
    item = ShopState(Page.ITEM, hits=(0,), row=0)
    assert clickables(item, catalogue).count("red") == clickables(item, catalogue).count("buy now") == 1
    chosen, bought = (follow(item, f"click[{name}]", catalogue) for name in ("red", "buy now"))
    assert chosen is not None and chosen.options == (("trim", "red"),)
    assert bought is not None and bought.page is Page.DONE


def test_an_empty_option_value_is_no_choice(tmp_path: Path) -> None:
    options = {"color": [{"value": " "}, {"value": "green"}], "trim": [{"value": ""}]}
    shop = write_shop(tmp_path, [{**TEAPOT, "customization_options": options}])
    environment, _ = opened(shop)
    environment.step("search[teapot]")
    item = environment.step("click[b00teapot1]")
    assert "click[]" not in item.admissible_actions and item.admissible_actions[-1] == "click[green]"
    assert " < Prev [SEP] color [SEP] green [SEP] trim [SEP] Blue Mountain" in item.observation
    assert not environment.step("click[]").admissible
    assert environment.plan() == ("click[green]", "click[buy now]")


def test_option_names_that_differ_in_case_are_one_option(tmp_path: Path) -> None:
    options = {
        "Color": [{"value": "red"}],
        "size": [{"value": "large"}],
        "COLOR": [{"value": "blue"}, {"value": "green"}],
    }
    shop = write_shop(tmp_path, [{**TEAPOT, "customization_options": options}])
    (teapot,) = (load_catalogue(shop).product(row) for row in range(1))
    assert teapot.options == (("color", ("blue", "green")), ("size", ("large",)))
