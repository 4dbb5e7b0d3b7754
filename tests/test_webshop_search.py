"""WebShop's search: terms, lengths and hits as Lucene has them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_shop import TEAPOT, mugs, write_shop

from verl_act.envs.webshop.analysis import index_terms
from verl_act.envs.webshop.catalogue import load_catalogue
from verl_act.envs.webshop.goals import list_goals
from verl_act.envs.webshop.instruction import likely_search
from verl_act.envs.webshop.search import LENGTHS, SearchIndex, length_bytes
from verl_act.envs.webshop.session import Page, ShopState, follow
from verl_act.envs.webshop.stemmer import stem

pytest_plugins = "small_shop"

LUCENE_STEMS = """
    possibly possibl; ability abil; technology technolog; psychology psycholog; ox ox; us us; trekking trek; revved
    rev; caresses caress; ponies poni; ties ti; sky sky; happy happi; agreed agre; feed feed; plastered plaster;
    troubled troubl; sized size; hopping hop; falling fall; fizzed fizz; failing fail; filing file; relational relat;
    conditional condit; rational ration; valenci valenc; digitizer digit; conformabli conform; radically radic;
    differently differ; vilely vile; analogously analog; vietnamization vietnam; predication predic; operator oper;
    feudalism feudal; hopefulness hope; callousness callous; formality formal; sensitivity sensit; sensibility
    sensibl; triplicate triplic; formative form; formalize formal; electricity electr; electrical electr; goodness
    good; revival reviv; allowance allow; airliner airlin; gyroscopic gyroscop; adjustable adjust; defensible defens;
    irritant irrit; replacement replac; adjustment adjust; dependent depend; adoption adopt; communism commun;
    activate activ; angularity angular; homologous homolog; effective effect; bowdlerize bowdler; probate probat; rate
    rate; cease ceas; controll control; roll roll
"""


def test_words_are_stemmed_as_lucene_does() -> None:
    """What Lucene 8.7's `PorterStemFilter` printed. PyStemmer's `porter` has possibli, technologi, u, trekk, revv."""
    pairs = [pair.split() for pair in LUCENE_STEMS.split(";")]
    assert {word: stem(word) for word, _ in pairs} == dict(pairs)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The women's T-Shirts, 3.5 oz, 1,000 u.s.a", "women t shirt 3.5 oz 1,000 u.s.a"),
        ("running runs runner", "run run runner"),
        ("is it the of?! _", ""),
        ("size:large 12:30 5;6 __c a_b", "size:larg 12 30 5;6 __c a_b"),
        ('5.5x3" café-Blue/white men’s don’t ‘x’', "5.5x3 café blue white men don’t x"),
        ("ft² ①x ™brand© x·y", "ft x ™ brand © x·y"),
        ("白色カタカナ ひら ไทย 한글", "白 色 カタカナ ひ ら ไทย 한글"),
        ("😀👍🏽★", "😀 👍🏽 ★"),
        ("a" * 300, f"{'a' * 255} {'a' * 45}"),
    ],
)
def test_texts_have_the_terms_that_lucene_gives_them(text: str, terms: str) -> None:
    """What Lucene 8.7 printed (`benchmarks/LuceneSearch.java`)."""
    assert index_terms(text) == terms.split()


def test_lengths_are_those_of_a_byte() -> None:
    """Lucene's `SmallFloat`: exact to 40, then in steps of 2, 4, 8, ... that double every eight."""
    lengths = [0, 1, 23, 24, 39, 40, 41, 42, 54, 55, 56, 59, 60, 87, 88, 95, 96, 100, 1000, 2**31 - 1]
    stored = [0, 1, 23, 24, 39, 40, 40, 42, 54, 54, 56, 56, 60, 84, 88, 88, 96, 96, 984, 2013265944]
    assert LENGTHS[length_bytes(np.array(lengths))].tolist() == stored
    assert len(LENGTHS) == 256 and LENGTHS.tolist() == sorted(set(LENGTHS.tolist()))


def test_hits_are_lucenes_in_its_order() -> None:
    """The digest of what Lucene 8.7 finds for the same searches in the embedded catalogue, all hits in their order."""
    catalogue, whole = load_catalogue(), hashlib.sha256()
    for goal in list_goals(catalogue)[:500]:
        found = catalogue.search(likely_search(goal.instruction))
        whole.update(f"{' '.join(catalogue.product(row).asin for row in found)}\n".encode())
    assert whole.hexdigest()[:16] == "137606dea212114a"


@pytest.mark.parametrize("texts", [["the of", "!"], ["the", "mug"], [""]])
def test_products_without_words_can_be_indexed(texts: list[str], tmp_path: Path) -> None:
    index = SearchIndex.build((str(number), text) for number, text in enumerate(texts))
    index.save(tmp_path / "index")
    for one in (index, SearchIndex.load(tmp_path / "index")):
        assert one.search("the mugs") == tuple(row for row, text in enumerate(texts) if text == "mug")


def test_equal_hits_go_by_product_id_and_none_is_without_a_word(shop: Path, tmp_path: Path) -> None:
    catalogue = load_catalogue(shop)
    turned = load_catalogue(write_shop(tmp_path, [*reversed(mugs(12)), TEAPOT]))
    assert turned.search("mug") == tuple(reversed(range(12)))
    assert catalogue.search("mug") == tuple(row for row in range(15) if row != 7)
    assert catalogue.search("teapot mountain") == (7,)
    assert catalogue.search("zeppelin") == catalogue.search("the of") == catalogue.search("!!") == ()
    assert len(load_catalogue().search("premium")) == 50


@given(st.text(max_size=200))
def test_the_suggested_search_can_always_be_searched(instruction: str) -> None:
    action = f"search[{likely_search(instruction)}]"
    state = follow(ShopState(), action, load_catalogue())
    assert state is not None and state.page is Page.RESULTS
