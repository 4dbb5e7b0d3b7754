"""WebShop's goals: made and ordered as in WebShop, their splits, and catalogues with too few."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
from small_shop import ATTRIBUTES, TEAPOT, goal, mugs, product, write_shop

from verl_act.envs.webshop import catalogue as catalogue_module
from verl_act.envs.webshop.catalogue import load_catalogue
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.goals import NO_LIMIT, SPLITS, list_goals, list_tasks, split_bounds
from verl_act.envs.webshop.planner import missing_options
from verl_act.envs.webshop.reward import options_alike, score_purchase
from verl_act.errors import ConfigError, EmptySplitError, EnvError

pytest_plugins = "small_shop"


def test_goals_are_made_and_ordered_as_in_webshop(shop: Path) -> None:
    goals = list_goals(load_catalogue(shop))
    assert len(goals) == 3 and {one.price_upper for one in goals} <= {40.0, 50.0, 60.0}
    green = next(one for one in goals if one.options)
    assert (
        green.instruction == f"i want a lead free teapot in green, and price lower than {green.price_upper:.2f} dollars"
    )
    order = [0, 1, 2]
    random.Random(233).shuffle(order)
    texts = ["i want a lead free teapot in green", "a teapot", "a pot"]
    assert [one.instruction.split(", and")[0] for one in goals] == [texts[at] for at in order]
    synthetic = list_goals(load_catalogue(shop), "synthetic")
    assert {one.options for one in synthetic} == {(("color", "blue | white"),), (("color", "green"),)}
    assert "Find me lead free teapots with color: green, and price lower than" in {
        one.instruction[:65] for one in synthetic
    }


def test_a_product_beyond_the_price_range_has_no_limit(tmp_path: Path) -> None:
    shop = write_shop(tmp_path, [{**TEAPOT, "pricing": "$2000"}])
    assert {(one.price_upper, "price" in one.instruction) for one in list_goals(load_catalogue(shop))} == {
        (NO_LIMIT, False)
    }


def test_splits_by_product_share_no_product(shop: Path) -> None:
    def products(split_by: str) -> list[set[str]]:
        tasks = [list_tasks(split, split_by=split_by) for split in SPLITS]
        assert sorted(int(task.task_id.split("-")[0]) for split in tasks for task in split) == list(range(4000))
        assert [len(split) for split in tasks] == [2500, 1000, 500]
        return [{task.task_id.partition("-")[2] for task in split} for split in tasks]

    train, dev, test = products("product")
    assert not (train & dev or train & test or dev & test)
    train, dev, test = products("goal")
    assert len(test & train) > 0.9 * len(test) and dev & train
    environment = WebShopEnvironment(split_by="product")
    by_goal = {task.task_id: task for task in list_tasks("test")}
    for task in list_tasks("test", split_by="product"):
        environment.reset(task)
        assert task.task_id not in by_goal or by_goal[task.task_id] == task
    (moved, *_) = (task for task in by_goal.values() if task not in list_tasks("test", split_by="product"))
    with pytest.raises(EnvError, match="split_by"):
        environment.reset(moved)
    assert [task.task_id[2:] for task in list_tasks("test", shop, split_by="product")] == ["B00TEAPOT1"] * 3
    with pytest.raises(EmptySplitError, match=r"'train'.*\b1\b"):
        list_tasks("train", shop, split_by="product")
    for make in (WebShopEnvironment, partial(list_tasks, "train")):
        with pytest.raises(ConfigError, match="split_by is 'asin'"):
            make(split_by="asin")


@pytest.mark.parametrize(
    ("goals", "sizes"), [(12087, (10587, 1000, 500)), (1501, (1, 1000, 500)), (1500, (750, 500, 250)), (3, (1, 1, 1))]
)
def test_splits_are_the_fields_own(goals: int, sizes: tuple[int, ...]) -> None:
    bounds = [split_bounds(split, goals) for split in SPLITS]
    assert tuple(map(len, bounds)) == sizes
    assert sorted(number for bound in bounds for number in bound) == list(range(goals))


def test_goals_read_the_products_and_the_instructions_of_their_kind_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all of a million products have a generated instruction, some thousand have one by people."""
    generated = {one["asin"]: {**ATTRIBUTES["B00TEAPOT1"]} for one in mugs(14)}
    shop = write_shop(tmp_path / "shop", [*mugs(7), TEAPOT, *mugs(14)[7:]], {**generated, **ATTRIBUTES})
    monkeypatch.setattr(catalogue_module, "CACHED_FROM", 0)
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path))
    catalogue = load_catalogue(shop)
    for file in tmp_path.rglob("asked_synthetic.jsonl"):
        file.rename(file.with_suffix(".away"))
    assert len(list_goals(catalogue)) == 3
    assert catalogue.product.cache_info().misses == 1
    for file in tmp_path.rglob("asked_synthetic.away"):
        file.rename(file.with_suffix(".jsonl"))
    assert len(list_goals(catalogue, "synthetic")) == 16 and catalogue.product.cache_info().misses == 15


def test_a_catalogue_with_too_few_goals_for_the_usual_splits_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop = write_shop(tmp_path, [TEAPOT])
    for split in SPLITS:
        list_tasks(split, shop)
        list_tasks(split)
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "has 3 human goals, too few for the usual splits (test: goals 0 to 499" in told


@pytest.mark.parametrize(
    ("bought", "asked", "by_people", "generated"),
    [
        ("large", ("size", "large"), True, True),
        ("x-large", ("size", "large"), True, False),
        ("10 wide", ("size", "10"), True, False),
        ("8.5", ("size", "8"), True, False),
        ("large", ("size", "x-large"), True, True),
        ("light green", ("color", "green"), True, True),
        ("green", ("color", "light green"), True, True),
        ("forest green", ("color", "army green"), True, True),
        ("whitesmoke", ("color", "whitesmoke"), True, False),
        ("standard", ("style", "standard"), True, False),  # holds `tan`
        ("blue | white", ("color", "blue | white"), True, True),
        ("women's", ("fit", "women's"), True, True),
        ("café", ("scent", "café"), True, True),
    ],
)
def test_generated_goals_compare_options_with_a_name_and_a_value(
    bought: str, asked: tuple[str, str], by_people: bool, generated: bool
) -> None:
    """What WebShop's `get_option_reward` says of a value, and of an item of a dictionary: thefuzz makes it a text,
    `('size', 'large')`, in which a color counts only where it is the whole of the value.
    """
    assert (options_alike(bought, asked[1]), options_alike(bought, asked)) == (by_people, generated)
    options = ((asked[0], (bought,)),)
    plan = missing_options(product(options=options), (asked,), {})
    assert plan == ((bought,) if generated else None)
    score = score_purchase(product(options=options), {asked[0]: bought}, goal(options=(asked,)))
    assert score.reward == (1.0 if generated else 3 / 4)
