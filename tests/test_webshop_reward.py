"""WebShop's reward: as WebShop counts it, by nouns, attributes, options and price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import fuzz
from rapidfuzz.utils import default_process
from small_shop import goal, product, texts, words

from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.goals import Goal
from verl_act.envs.webshop.instruction import content_words, likely_search, price_limit
from verl_act.envs.webshop.nouns import noun_tagger
from verl_act.envs.webshop.product import Product
from verl_act.envs.webshop.reward import color_of, common_nouns, options_alike, score_purchase, similar
from verl_act.errors import ConfigError


def test_an_instruction_is_read_for_what_it_asks() -> None:
    text = "I'm looking for a women's red dress in size x-large, and price lower than 50.00 dollars"
    assert content_words(text) == ("women's", "red", "dress", "x-large")
    assert likely_search(text) == "women's red dress x-large" and price_limit(text) == 50.0
    assert price_limit("a dress") is None
    assert likely_search("") == "products" and likely_search("i want it") == "i want it"
    assert len(likely_search("word9 " * 5 + "x" * 5000)) <= 1000
    assert len(likely_search(" ".join(map(str, range(5000))))) <= 1000


@pytest.mark.parametrize(
    ("bought", "wanted", "options", "reward"),
    [
        ({}, {}, {"color": "green"}, 1.0),
        ({}, {}, {"color": "blue | white"}, 3 / 4),
        ({}, {}, {}, 3 / 4),
        ({"price": 30.01}, {}, {"color": "green"}, 3 / 4),
        ({"price": 30.0}, {}, {"color": "green"}, 1.0),
        ({"attributes": ("lead free",)}, {}, {"color": "green"}, 3 / 4),
        ({"attributes": ()}, {}, {"color": "green"}, 2 / 4),
        ({"attributes": (), "description": "Easy Clean"}, {}, {"color": "green"}, 3 / 4),
        ({"attributes": (), "bullets": ("lead", "free")}, {"attributes": ("lead free",)}, {"color": "green"}, 1.0),
        ({}, {"options": ()}, {"color": "green"}, 1.0),
        ({}, {"options": ("dark green",)}, {"color": "green"}, 3 / 4),
        ({}, {"options": ("forest green", "x")}, {"color": "green"}, 4 / 5),
        ({"query": "kettle", "product_category": "A › B"}, {}, {"color": "green"}, 1.0),
        ({"query": "kettle", "product_category": "A", "name": "Teapot"}, {}, {"color": "green"}, 1.0),
        ({"query": "kettle", "name": "Lid"}, {"name": "Lid a1 a2 a3 a4"}, {"color": "green"}, 1.0),
        ({"query": "kettle", "product_category": "A", "name": "Lid"}, {"name": "Lid p q r s"}, {"color": "green"}, 0.5),
        ({"name": "Lid"}, {"name": "Lid p q r s t u w y z k"}, {"color": "green"}, 0.1),
        ({"name": "Kettle"}, {}, {"color": "green"}, 0.0),
        ({"name": "Kettle"}, {"name": "for 2"}, {"color": "green"}, 1.0),
        ({"query": "kettle", "product_category": "A"}, {"name": "for 2"}, {"color": "green"}, 0.5),
    ],
)
def test_the_reward_is_webshops(
    bought: dict[str, Any], wanted: dict[str, Any], options: dict[str, str], reward: float
) -> None:
    assert score_purchase(product(**bought), options, goal(**wanted)).reward == pytest.approx(reward, abs=1e-12)


@given(
    product=st.builds(
        product,
        name=texts,
        query=words,
        product_category=st.lists(words, max_size=3).map(" › ".join),
        description=texts,
        attributes=st.lists(texts, max_size=3).map(tuple),
        price=st.floats(0, 100, allow_subnormal=False),
    ),
    goal=st.builds(
        goal,
        name=texts,
        query=words,
        product_category=st.lists(words, max_size=3).map(" › ".join),
        attributes=st.lists(texts, min_size=1, max_size=3).map(tuple),
        options=st.lists(texts, max_size=3).map(tuple),
    ),
    options=st.dictionaries(words, texts, max_size=3),
)
def test_the_reward_is_one_only_where_everything_is_met(product: Product, goal: Goal, options: dict[str, str]) -> None:
    score = score_purchase(product, options, goal)
    assert 0 <= score.reward <= 1
    met = (len(goal.attributes), len(goal.options), True)
    everything = (score.attributes, score.options, score.price) == met and score.type_factor == 1
    assert (score.reward == 1.0) == everything


@pytest.mark.parametrize(
    ("bought", "wanted", "share"),
    [
        (
            "Acme Unisex-Adult F.o.x. Issue 2 Indoor Court Shoe",
            "Acme Unisex-Adult F.o.x. Issue 2 Basketball Shoe",
            6 / 7,
        ),
        ("AC Power Cord Outlet, Home Theater System", "2 Prong Power Cord for Bar 3.1 4K Home Theater System", 5 / 7),
        ("2pcs Stainless Steel Tweezers (Silver)", "921ORB Kitchen and Bath Cabinet Knob", 0),
        ("Acme Men's Slippers", "Men’s Boot", 1 / 2),
        ("Slippers for Men", "Women's Slippers in men's sizes", 2 / 4),
        ("anything", "with 3 of 4", 0.2),
    ],
)
def test_nouns_are_shared(bought: str, wanted: str, share: float) -> None:
    assert common_nouns(bought, wanted) == pytest.approx(share)


def test_without_spacy_its_models_are_refused_with_the_commands_that_install_them() -> None:
    with pytest.raises(ConfigError, match=r"nouns is 'en_core_web_none'.*python -m spacy download en_core_web_none"):
        noun_tagger("en_core_web_none")


def test_the_nouns_of_a_spacy_model_decide_the_reward(tmp_path: Path) -> None:
    """A model of rules instead of a trained one, which PyPI does not have."""
    spacy = pytest.importorskip("spacy", reason="needs the extra webshop-spacy")
    model = spacy.blank("en")
    ruler = model.add_pipe("attribute_ruler")
    for pos, names in (("NOUN", ["Men", "Lid"]), ("PROPN", ["Blue"]), ("ADJ", ["Stoneware"])):
        ruler.add(patterns=[[{"TEXT": name}] for name in names], attrs={"POS": pos})
    model.to_disk(tmp_path / "model")
    assert noun_tagger(str(tmp_path / "model"))("Blue Men's Stoneware Lid") == ("blue", "men", "lid")
    environment = WebShopEnvironment(nouns=str(tmp_path / "model"))
    assert environment.nouns("Blue") == ("blue",) and noun_tagger()("Blue") == ()


def test_values_are_compared_as_thefuzz_does() -> None:
    assert [color_of(value) for value in ("", "black forest", "violet lavender", "123alabaster", "shop")] == [
        "",
        "black",
        "lavender",
        "alabaster",
        "shop",
    ]
    assert options_alike("powder snow", "cool powder snow") and options_alike("XL", "xl")
    assert options_alike("8.5", "8") and not options_alike("9", "8")  # a quirk of the token sets: "8.5" holds "8"
    assert similar("essential oil", "essential oils") and not similar("tea bag", "tea tree")
    assert not similar("", "") and not similar("é", "é") and similar("crème brûlée", "crme brle")
    # Letters of other alphabets are compared, other signs part words.
    assert similar("白色", "白色") and not similar("xl（白色）", "xl（黑色）") and not similar("style①", "style②")
    assert similar("large–blue", "blue")


def test_the_figures_of_webshops_matching() -> None:
    """Percent that thefuzz finds between a bought value, and the item or the value of a goal."""

    def alike(first: str, second: str) -> int:
        return round(fuzz.token_set_ratio(first, second, processor=default_process))

    assert alike("x-large", color_of(("size", "large"))) == 83 and alike("x-large", color_of("large")) == 100
    assert alike("10 wide", color_of(("size", "10"))) == 71 and alike("10 wide", color_of("10")) == 100
