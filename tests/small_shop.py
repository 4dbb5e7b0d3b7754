"""A small shop in files of WebShop's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.goals import SPLITS, Goal, list_tasks
from verl_act.envs.webshop.product import Product

TEAPOT: dict[str, Any] = {
    "asin": "B00TEAPOT1",
    "name": "Blue Mountain Stoneware Teapot with Lid",
    "category": "garden",
    "query": " Tea Pots ",
    "product_category": "Home & Kitchen › Dining › Teapots",
    "full_description": "A pot for four cups.",
    "small_description": ["dishwasher safe", "made by hand"],
    "pricing": "$24.50",
    "customization_options": {"Color": [{"value": "Blue/White"}, {"value": " green "}], "Size": None},
    "images": ["x.jpg"],
}
MUG: dict[str, Any] = {**TEAPOT, "name": "Stoneware Mug", "query": "mug", "customization_options": "", "pricing": ""}
ATTRIBUTES: dict[str, Any] = {
    "B00TEAPOT1": {
        "attributes": ["lead free", "easy clean"],
        "instruction": "Find me lead free teapots",
        "instruction_attributes": ["lead free"],
    }
}
HUMAN: dict[str, Any] = {
    "B00TEAPOT1": [
        {
            "instruction": "i want a lead free teapot in green.",
            "instruction_attributes": ["lead free"],
            "instruction_options": ["green"],
        },
        {"instruction": "no attributes", "instruction_attributes": [], "instruction_options": []},
        {"instruction": "a teapot", "instruction_attributes": ["dishwasher safe"], "instruction_options": {}},
        {"instruction": "a pot", "instruction_attributes": ["stoneware"], "instruction_options": []},
    ]
}


def mugs(count: int) -> list[dict[str, Any]]:
    return [{**MUG, "asin": f"B00000MUG{number:X}"} for number in range(count)]


def write_shop(
    folder: Path, products: Any, attributes: Any = ATTRIBUTES, human: Any = HUMAN, *, small: bool = False
) -> Path:
    """A folder with files in WebShop's format."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = "_1000" if small else ""
    for name, content in ((f"items_shuffle{mark}", products), (f"items_ins_v2{mark}", attributes)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "items_human_ins.json").write_text(json.dumps(human))
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teapot and fourteen mugs; the teapot's three goals make one a split."""
    return write_shop(tmp_path_factory.mktemp("shop"), [*mugs(7), TEAPOT, *mugs(14)[7:]])


def opened(shop: Path, **settings: Any) -> tuple[WebShopEnvironment, str]:
    """An environment at the goal `lead free teapot in green`, and its first observation."""
    environment = WebShopEnvironment(shop, **settings)
    for split in SPLITS:
        for task in list_tasks(split, shop):
            first = environment.reset(task)
            if "green" in first.goal:
                return environment, first.observation
    raise AssertionError("no such goal")


def goal(**changes: Any) -> Goal:
    teapot = {
        "row": 0,
        "asin": "B00TEAPOT1",
        "category": "garden",
        "query": "tea pots",
        "name": TEAPOT["name"],
        "product_category": TEAPOT["product_category"],
        "instruction": "",
        "attributes": ("lead free", "easy clean"),
        "options": ("green",),
        "price_upper": 30.0,
    }
    return Goal(**{**teapot, **changes})


def product(**changes: Any) -> Product:
    teapot = {
        "asin": "B00TEAPOT1",
        "name": TEAPOT["name"],
        "category": "garden",
        "query": "tea pots",
        "product_category": TEAPOT["product_category"],
        "description": "A pot for four cups.",
        "bullets": ("dishwasher safe", "made by hand"),
        "price": 24.5,
        "price_tag": "$24.5",
        "options": (("color", ("blue | white", "green")),),
        "attributes": ("lead free", "easy clean"),
    }
    return Product(**{**teapot, **changes})


words = st.sampled_from(["lead", "free", "teapot", "green", "blue", "mug", "stone", "lid", "for", "2", "x-large", ""])
texts = st.lists(words, max_size=5).map(" ".join)
