"""WebShop: formats, search, pages, reward, plans and experts, on its own catalogue and on files in WebShop's format."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import fuzz
from rapidfuzz.utils import default_process
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.data_prep.expert.collect_expert import collect_expert, play
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.data_prep.pairs.check_pairs import check_pairs
from verl_act.data_prep.pairs.margins import UNREACHABLE, Replayer
from verl_act.envs.base import StepResult, Task
from verl_act.envs.contract import NONSENSE, check_environment
from verl_act.envs.registry import get_env
from verl_act.envs.webshop import catalogue as catalogue_module
from verl_act.envs.webshop.analysis import Analyzer
from verl_act.envs.webshop.catalogue import load_catalogue
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.experts import GoalExpert
from verl_act.envs.webshop.goals import NO_LIMIT, SPLITS, Goal, list_goals, list_tasks, split_bounds
from verl_act.envs.webshop.instruction import content_words, likely_search, price_limit
from verl_act.envs.webshop.make_catalogue import make_catalogue
from verl_act.envs.webshop.nouns import noun_tagger
from verl_act.envs.webshop.planner import Planner, missing_options
from verl_act.envs.webshop.product import Product
from verl_act.envs.webshop.reward import color_of, common_nouns, options_alike, score_purchase, similar
from verl_act.envs.webshop.search import LENGTHS, SearchIndex, length_bytes
from verl_act.envs.webshop.session import Page, ShopState, clickables, follow, is_search
from verl_act.envs.webshop.shopper import ShopperExpert
from verl_act.envs.webshop.stemmer import stem
from verl_act.errors import ConfigError, DataError, EmptySplitError, EnvError
from verl_act.manifest import read_manifest
from verl_act.schema import ALTERNATIVES, TRAJECTORY, Alternatives, read_pairs, read_steps, write_rows
from verl_act.settings.data import AuditSettings, CatalogueSettings, ExpertSettings, PairsSettings

SPEC = get_env("webshop")

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


# The contract and the experts


@pytest.mark.parametrize("split", SPLITS)
def test_webshop_keeps_the_contract(split: str) -> None:
    check_environment(SPEC, split)


@pytest.mark.parametrize("settings", [{"observation": "text_rich"}, {"observation": "brief"}, {"goals": "synthetic"}])
def test_every_setting_keeps_the_contract(settings: dict[str, Any]) -> None:
    check_environment(SPEC, "train", settings, seed=3)


def test_the_experts_win_and_chance_does_not() -> None:
    environment = WebShopEnvironment()
    tasks = random.Random(1).sample(list_tasks("test"), 100)
    won = {name: 0 for name in SPEC.experts}
    for name, make in SPEC.experts.items():
        for task in tasks:
            won[name] += play(environment, make(), task, source=name)[-1].success
    assert won["goal"] == 100 and won["shopper"] >= 88
    lucky = 0
    for task in tasks:
        rng, shown = random.Random(task.task_id), environment.reset(task)
        actions = shown.admissible_actions
        for _ in range(15):
            result = environment.step(rng.choice(actions))
            lucky += result.success
            actions = result.admissible_actions
            if result.done:
                break
    assert lucky <= 3


def test_the_shopper_reads_every_style_alike_and_asks_no_environment() -> None:
    acted = []
    for style in ("text", "brief", "text_rich"):
        environment = WebShopEnvironment(observation=style)

        class Blind(ShopperExpert):
            def act(self, context: Any, environment: Any = None) -> tuple[str, bool]:
                return super().act(context)

        steps = [play(environment, Blind(), task, source="x") for task in list_tasks("dev")[:15]]
        acted.append([(step.action, step.inferable, step.success) for episode in steps for step in episode])
    assert acted[0] == acted[1] == acted[2]
    assert 0.8 < sum(inferable for _, inferable, _ in acted[0]) / len(acted[0]) < 1


def test_interleaved_episodes_are_strangers(shop: Path) -> None:
    (first, _), (second, _) = opened(shop), opened(shop)
    first.step("search[teapot]")
    first.step("click[b00teapot1]")
    first.step("click[green]")
    assert second.step("search[mug]").observation.count("Stoneware Mug") == 10
    assert second.step("click[green]").admissible is False
    assert first.step("click[buy now]").reward == 1.0
    assert second.plan_length() is not None and not second.step("click[next >]").done


def test_trajectories_and_pairs(tmp_path: Path) -> None:
    collect_expert(ExpertSettings(env="webshop", split="train", limit=12, workers=0), tmp_path / "x")
    steps = read_steps([tmp_path / "x" / "trajectories.parquet"])
    assert all(step.verified and step.success and step.plan_length is not None for step in steps)
    trajectories = [tmp_path / "x" / "trajectories.parquet"]
    build_pairs(
        PairsSettings(trajectories=trajectories, source="admissible", max_alternatives_per_state=2, workers=0),
        tmp_path / "p",
    )
    pairs = read_pairs([tmp_path / "p" / "pairs.parquet"])
    assert pairs and all(pair.alternative_admissible and (pair.margin or 0) > 0 for pair in pairs)
    result = CliRunner().invoke(app, ["data", "tasks", "--out", str(tmp_path / "t"), "--splits", "dev", "webshop"])
    assert result.exit_code == 0, result.output


# Catalogues


def test_a_search_that_no_list_has_is_sound_in_a_pair(tmp_path: Path) -> None:
    """The shop takes any words: from a policy that samples them, and from an expert whose trajectory was imported."""
    collect_expert(ExpertSettings(env="webshop", split="dev", limit=3, workers=0), tmp_path / "e")
    steps = read_steps([tmp_path / "e" / "trajectories.parquet"])
    searched = [step for step in steps if step.action.startswith("search[")]
    own = {step.state_id: replace(step, action=f"{step.action[:-1]} please]") for step in searched}
    imported = [own.get(step.state_id, step) for step in steps]
    write_rows(tmp_path / "imported.parquet", [step.to_row() for step in imported], TRAJECTORY)
    reply = "<action>search[a kettle]</action>"
    rows = [Alternatives(state_id=step.state_id, replies=(reply,), model="m", sampling="{}").to_row() for step in steps]
    write_rows(tmp_path / "alternatives.parquet", rows, ALTERNATIVES)
    build_pairs(
        PairsSettings(
            trajectories=[tmp_path / "imported.parquet"],
            alternatives=[tmp_path / "alternatives.parquet"],
            keep_nonpositive_margin=True,
            workers=0,
        ),
        tmp_path / "p",
    )
    pairs = read_pairs([tmp_path / "p" / "pairs.parquet"])
    assert {step.action for step in own.values()} <= {pair.expert_action for pair in pairs}
    kettles = [pair for pair in pairs if pair.alternative_action == "search[a kettle]"]
    assert len(kettles) > len(searched) and all(pair.alternative_admissible for pair in kettles)
    errors = check_pairs(AuditSettings(pairs=[tmp_path / "p" / "pairs.parquet"])).errors
    assert not {finding.check for finding in errors} & {"admissible flag", "expert's action admissible"}


def test_the_embedded_catalogue_is_the_same_everywhere(tmp_path: Path) -> None:
    """A change of this digest makes every figure measured on the catalogue another one."""
    make_catalogue(CatalogueSettings(), tmp_path / "made")
    whole = hashlib.sha256()
    for name in ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json"):
        whole.update((tmp_path / "made" / name).read_bytes())
    assert whole.hexdigest()[:16] == "5926125b21074927"
    embedded = load_catalogue()
    assert list_goals(load_catalogue(tmp_path / "made")) == list_goals(embedded)
    assert [len(list_tasks(split)) for split in SPLITS] == [2500, 1000, 500]


def test_seeds_make_other_catalogues(tmp_path: Path) -> None:
    arguments = ["dev", "catalogue", "--products", "40", "--instructions", "2", "--out"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        result = CliRunner().invoke(app, [*arguments, str(tmp_path / name), "--seed", seed])
        assert result.exit_code == 0, result.output
    contents = {name: (tmp_path / name / "items_shuffle.json").read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]
    manifest = read_manifest(tmp_path / "a")
    assert manifest is not None and manifest.counts["goals"] == {"train": 40, "dev": 26, "test": 14}
    with pytest.raises(ConfigError, match="--products"):
        make_catalogue(CatalogueSettings(products=1, instructions=2), tmp_path / "none")


def test_an_official_file_is_read_as_webshop_reads_it(tmp_path: Path) -> None:
    products = [
        TEAPOT,
        {**TEAPOT, "name": "its twin, left out"},
        {**MUG, "asin": "nan"},
        {**MUG, "asin": "B0TOOLONGID"},
        {**MUG, "asin": "B000RANGED", "pricing": "$1,005.10$2,500", "small_description": "one text"},
        {**MUG, "asin": "B0000UNREAD", "asin_": 1, "name": "half a \ud83d smile", "full_description": None},
    ]
    products[-1]["asin"] = "B000BROKEN"
    shop = write_shop(tmp_path, products, small=True)
    catalogue = load_catalogue(shop)
    teapot, ranged, broken = (catalogue.product(row) for row in range(len(catalogue)))
    assert teapot == product()
    assert ranged.price_tag == "$1005.1 to $2500.0" and 1005.1 <= ranged.price <= 2500
    assert ranged.bullets == ("one text",) and ranged.options == () and ranged.attributes == ("DUMMY_ATTR",)
    assert broken.name == "half a ? smile" and broken.price_tag == "$100.0"
    assert load_catalogue(shop / "items_shuffle_1000.json") is catalogue


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


def test_a_large_catalogue_is_prepared_once(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_memory = load_catalogue(shop)
    monkeypatch.setattr(catalogue_module, "CACHED_FROM", 0)
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path))
    copy = write_shop(tmp_path / "shop", [*mugs(7), TEAPOT, *mugs(14)[7:]])
    mapped = load_catalogue(copy)
    catalogue_module.load_files.cache_clear()
    again = load_catalogue(copy)
    assert mapped is not again and caplog.text.count("building the cache") == 1
    for catalogue in (mapped, again):
        assert list_goals(catalogue) == list_goals(in_memory) and len(catalogue) == 15
        assert catalogue.search("stoneware teapot") == in_memory.search("stoneware teapot")
        assert [catalogue.product(row) for row in range(15)] == [in_memory.product(row) for row in range(15)]
    (copy / "items_shuffle.json").write_text(json.dumps([TEAPOT]))
    assert len(load_catalogue(copy)) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path / "file"))
    catalogue_module.load_files.cache_clear()
    with pytest.raises(DataError, match="VERL_ACT_CACHE"):
        load_catalogue(copy)


@pytest.fixture
def cached_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shop whose catalogue has been prepared in the cache `tmp_path / "cache"`."""
    monkeypatch.setattr(catalogue_module, "CACHED_FROM", 0)
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path / "cache"))
    shop = write_shop(tmp_path / "shop", [TEAPOT, *mugs(14)])
    load_catalogue(shop)
    catalogue_module.load_files.cache_clear()
    return shop


def cache_of(shop: Path) -> Path:
    (folder,) = (path for path in (shop.parent / "cache" / "webshop").iterdir() if path.is_dir())
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 4
    path.write_bytes(contents)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, Path.unlink, lambda path: path.write_text("")])
def test_a_damaged_cache_is_named_deleted_and_rebuilt(
    damage: Any, cached_shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, whole = cache_of(cached_shop), load_catalogue(cached_shop).search("stoneware teapot")
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(names) == 10
    for name in names:
        catalogue_module.load_files.cache_clear()
        caplog.clear()
        damage(folder / name)
        catalogue = load_catalogue(cached_shop)
        assert f"{folder}: the cache was" in caplog.text and "is rebuilt" in caplog.text, name
        assert catalogue.search("stoneware teapot") == whole and len(list_goals(catalogue)) == 3


@pytest.mark.parametrize("change", ["a file in its place", "another version", "other products", "unreadable"])
def test_a_cache_of_something_else_is_rebuilt(change: str, cached_shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = cache_of(cached_shop)
    if change == "a file in its place":
        shutil.rmtree(folder)
        folder.write_text("")
    elif change == "another version":
        contents = json.loads((folder / "cache.json").read_text())
        contents["made_from"]["regex"] = "1.0"
        (folder / "cache.json").write_text(json.dumps(contents))
    elif change == "other products":
        write_shop(cached_shop, [*mugs(3), TEAPOT])
    else:
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "cache.json").mkdir()
    caplog.clear()
    assert len(load_catalogue(cached_shop)) == (4 if change == "other products" else 15)
    assert "is rebuilt" in caplog.text and str(folder) in caplog.text
    assert cache_of(cached_shop) == folder, "the former one is not left behind"


def test_two_processes_prepare_a_cache_once(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop", [TEAPOT, *mugs(14)])
    code = (
        "import sys; from verl_act.envs.webshop import catalogue; catalogue.CACHED_FROM = 0; "
        "print(len(catalogue.load_catalogue(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(shop)]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, "VERL_ACT_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [process.communicate() for process in started]
    assert [out for out, _ in printed] == ["15\n"] * 2
    assert sum("building the cache" in errors for _, errors in printed) == 1


def test_a_cache_that_cannot_be_written_is_used_while_it_is_whole(
    cached_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root, who may write anywhere: no lock can be where a folder is, and no folder where a file is."""
    cache_of(cached_shop).with_suffix(".lock").mkdir()
    assert load_catalogue(cached_shop).search("teapot")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path / "file"))
    catalogue_module.load_files.cache_clear()
    with pytest.raises(DataError, match=r"file.*VERL_ACT_CACHE"):
        load_catalogue(cached_shop)


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


# Damaged and missing data


def damaged(name: str, folder: Path) -> Path:
    """A shop with one thing wrong with it."""
    write_shop(folder, [TEAPOT, MUG])
    products = folder / "items_shuffle.json"
    whole = json.dumps([TEAPOT, *mugs(3)])
    texts = {
        "truncated": whole[: len(whole) // 2],
        "no array": '{"a": 1}',
        "garbage": "\x00\x01" * 1000,
        "trailing": whole + "]",
        "no comma": f"{json.dumps([TEAPOT])[:-1]} {json.dumps(MUG)}]",
        "nested": "[" * 100_000,
        "empty": "",
        "no product": "[]",
        "no name": json.dumps([TEAPOT, {**mugs(1)[0], "name": None}]),
        "bad price": json.dumps([TEAPOT, {**mugs(1)[0], "pricing": "free"}]),
        "bad options": json.dumps([{**TEAPOT, "customization_options": {"color": ["red"]}}]),
        "a number": "[1]",
    }
    if name in texts:
        products.write_text(texts[name])
    elif name == "not text":
        products.write_bytes(b"\xff\xfe[]")
    elif name == "bad attributes":
        (folder / "items_ins_v2.json").write_text('{"B00TEAPOT1": {"attributes": [1]}}')
    elif name == "bad instructions":
        (folder / "items_human_ins.json").write_text('{"B00TEAPOT1": [{"instruction": "x"}]}')
    elif name == "no attribute file":
        (folder / "items_ins_v2.json").unlink()
    elif name == "no product file":
        products.unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("truncated", r"items_shuffle\.json, line 1: is not JSON .* at entry 1\."),
        ("no array", r"items_shuffle\.json: .*a JSON list"),
        ("garbage", r"items_shuffle\.json: "),
        ("trailing", r"items_shuffle\.json, line 1: is not JSON \(Extra data"),
        ("no comma", r"items_shuffle\.json, .* ',' .* at entry 0"),
        ("nested", r"items_shuffle\.json, .*deeply\), at entry 0"),
        ("empty", r"items_shuffle\.json: "),
        ("no product", r"items_shuffle\.json: contains no product"),
        ("no name", r"items_shuffle\.json: entry 1: field 'name'"),
        ("bad price", r"items_shuffle\.json: entry 1: field 'pricing' is 'free'"),
        ("bad options", r"items_shuffle\.json: entry 0: field 'customization_options'"),
        ("a number", r"items_shuffle\.json: entry 0: "),
        ("not text", r"items_shuffle\.json.*UTF-8"),
        ("bad attributes", r"items_ins_v2\.json: key 'B00TEAPOT1'"),
        ("bad instructions", r"items_human_ins\.json: key 'B00TEAPOT1'"),
        ("no attribute file", r"items_ins_v2\.json: no such file"),
        ("no product file", r"items_shuffle\.json: no such file"),
    ],
)
def test_damaged_data_are_named_with_a_remedy(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load_catalogue(damaged(name, tmp_path / "shop"))
    assert any(remedy in str(caught.value) for remedy in ("dev", "catalogue", "Download", "Save it as UTF-8"))


def test_a_shop_without_goals_says_so(tmp_path: Path) -> None:
    shop = write_shop(tmp_path, [MUG], {}, {})
    with pytest.raises(DataError, match=r"human goals.*goals='synthetic'"):
        list_tasks("train", shop)
    with pytest.raises(DataError, match="'valid'"):
        list_tasks("valid", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "settings", [{"max_steps": 0}, {"observation": "html"}, {"nouns": "no_such_model"}, {"goals": "both"}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        WebShopEnvironment(**settings).reset(list_tasks("test")[0])


@pytest.mark.parametrize("task_id", ["0-B000000000", "x", "-1-B0", "99999999999999999-B0", "4000-B0", "１-B0"])
def test_unknown_tasks_are_refused(task_id: str) -> None:
    environment = WebShopEnvironment()
    environment.reset(list_tasks("test")[0])
    with pytest.raises(EnvError, match=r"WebShop task|another goal"):
        environment.reset(Task("webshop", "test", task_id, "x"))
    for never_or_no_longer in (WebShopEnvironment(), environment):
        with pytest.raises(EnvError, match="reset"):
            never_or_no_longer.step("search[x]")


# Search


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
    assert Analyzer().terms(text) == terms.split()


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


# Pages


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


# Actions


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


def test_running_out_of_steps_is_no_success(shop: Path) -> None:
    environment, _ = opened(shop, max_steps=2)
    environment.step("search[teapot]")
    last = environment.step("click[b00teapot1]")
    assert (last.done, last.success, last.admissible) == (True, False, True)
    after = environment.step("click[buy now]")
    assert (after.done, after.success, after.admissible, after.reward) == (True, False, False, 0.0)


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


# Instructions


def test_an_instruction_is_read_for_what_it_asks() -> None:
    text = "I'm looking for a women's red dress in size x-large, and price lower than 50.00 dollars"
    assert content_words(text) == ("women's", "red", "dress", "x-large")
    assert likely_search(text) == "women's red dress x-large" and price_limit(text) == 50.0
    assert price_limit("a dress") is None
    assert likely_search("") == "products" and likely_search("i want it") == "i want it"
    assert len(likely_search("word9 " * 5 + "x" * 5000)) <= 1000
    assert len(likely_search(" ".join(map(str, range(5000))))) <= 1000


@given(st.text(max_size=200))
def test_the_suggested_search_can_always_be_searched(instruction: str) -> None:
    action = f"search[{likely_search(instruction)}]"
    state = follow(ShopState(), action, load_catalogue())
    assert state is not None and state.page is Page.RESULTS


# Reward: each row is a change to a perfect purchase of the teapot


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


words = st.sampled_from(["lead", "free", "teapot", "green", "blue", "mug", "stone", "lid", "for", "2", "x-large", ""])
texts = st.lists(words, max_size=5).map(" ".join)


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


def test_the_figures_of_webshops_matching() -> None:
    """Percent that thefuzz finds between a bought value, and the item or the value of a goal."""

    def alike(first: str, second: str) -> int:
        return round(fuzz.token_set_ratio(first, second, processor=default_process))

    assert alike("x-large", color_of(("size", "large"))) == 83 and alike("x-large", color_of("large")) == 100
    assert alike("10 wide", color_of(("size", "10"))) == 71 and alike("10 wide", color_of("10")) == 100


# Plans


@pytest.mark.parametrize(
    ("asked", "chosen", "clicks"),
    [
        ((), {}, ()),
        (("green",), {}, ("green",)),
        (("green",), {"color": "green"}, ()),
        (("green",), {"color": "blue"}, ("green",)),
        (("green", "large"), {"size": "small"}, ("green", "large")),
        (("green", "blue"), {}, None),
        (("pack of 2",), {}, ("large pack of 2",)),
        (("large", "pack of 2"), {}, ("large pack of 2",)),
        (("large", "pack of 2"), {"size": "large"}, ("large pack of 2",)),
        (("velvet",), {}, None),
    ],
)
def test_the_fewest_option_clicks(
    asked: tuple[str, ...], chosen: dict[str, str], clicks: tuple[str, ...] | None
) -> None:
    options = (("color", ("green", "blue")), ("size", ("small", "large", "large pack of 2")))
    assert missing_options(product(options=options), asked, chosen) == clicks


def test_plans_are_as_short_as_any_way(tmp_path: Path) -> None:
    """Breadth first over every click and the likely searches, in a shop of six."""
    make_catalogue(CatalogueSettings(products=6, instructions=3), tmp_path / "six")
    catalogue = load_catalogue(tmp_path / "six")
    searches = [f"search[{catalogue.product(row).name.lower()}]" for row in range(6)]
    for one in list_goals(catalogue)[:6]:
        planner = Planner(catalogue, one, noun_tagger())
        actions = [*searches, f"search[{likely_search(one.instruction)}]"]
        states, edges = _explore(catalogue, actions)
        left = _distances(states, edges, catalogue, one)
        for state in states:
            plan = planner.plan(state)
            assert plan is not None and len(plan) == left[state], (one.instruction, state)
            for action in plan:
                following = follow(state, action, catalogue)
                assert following is not None
                state = following
            assert score_purchase(catalogue.product(state.row), dict(state.options), one).reward == 1.0


def _explore(catalogue: Any, searches: list[str]) -> tuple[list[ShopState], dict[ShopState, list[ShopState]]]:
    """Every state but purchases, with the states after it; what has been visited is left aside."""

    def plain(state: ShopState) -> ShopState:
        return ShopState(state.page, state.hits, state.page_number, state.row, tuple(sorted(state.options)))

    edges: dict[ShopState, list[ShopState]] = {}
    waiting = deque([ShopState()])
    while waiting:
        state = waiting.popleft()
        if state in edges or state.page_number > 2:
            continue
        clicks = [f"click[{target}]" for target in clickables(state, catalogue)]
        after = [follow(state, action, catalogue) for action in (*searches, *clicks)]
        edges[state] = [plain(found) for found in after if found is not None]
        waiting.extend(found for found in edges[state] if found.page is not Page.DONE)
    return list(edges), edges


def _distances(
    states: list[ShopState], edges: dict[ShopState, list[ShopState]], catalogue: Any, one: Goal
) -> dict[ShopState, int]:
    """The fewest actions from each state to a purchase of reward 1.0."""

    def wins(state: ShopState) -> bool:
        bought = state.page is Page.DONE
        return bought and score_purchase(catalogue.product(state.row), dict(state.options), one).reward == 1.0

    left = {state: 1 for state in states if any(map(wins, edges[state]))}
    changed = True
    while changed:
        nearer = {
            state: 1 + min(left[after] for after in edges[state] if after in left)
            for state in states
            if state not in left and any(after in left for after in edges[state])
        }
        left |= nearer
        changed = bool(nearer)
    return left


def test_a_wrong_purchase_is_out_of_reach(shop: Path) -> None:
    environment, _ = opened(shop)
    assert environment.plan_length() == 4
    environment.step("search[mug]")
    environment.step("click[b00000mug0]")
    start = environment.snapshot()
    assert environment.step("click[buy now]").success is False
    assert environment.plan() is None
    environment.restore(start)
    assert environment.plan_length() == 4
    with pytest.raises(EnvError, match="WebShopEnvironment"):
        GoalExpert().act(None, None)  # type: ignore[arg-type]


def test_a_margin_is_unknown_where_the_planner_has_not_looked_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No likely search finds the goal's product: fifty others of its name come first. The expert's own search does."""
    monkeypatch.setattr("verl_act.envs.webshop.planner.SCANNED", 5)
    twin = {**TEAPOT, "full_description": "A lead free teapot in green.", "customization_options": None}
    twins = [{**twin, "asin": f"B000TWIN{number:02}"} for number in range(60)]
    shop = write_shop(tmp_path, [*twins, {**TEAPOT, "full_description": "An heirloom."}])
    environment, _ = opened(shop)
    assert environment.plan() is None
    actions = ["search[heirloom]", "click[b00teapot1]", "click[green]", "click[buy now]"]
    task = next(task for split in SPLITS for task in list_tasks(split, shop) if "green" in environment.reset(task).goal)

    class Knows:
        def reset(self, task: Task, seed: int) -> None: ...

        def act(self, context: Any, environment: Any) -> tuple[str, bool]:
            return actions[len(context.history)], True

    steps = play(environment, Knows(), task, source="x")
    assert steps[-1].success and [step.plan_length for step in steps] == [None, 3, 2, 1]
    replayer = Replayer("webshop", {"data": str(shop)})
    states = {}
    for state in replayer.replay(steps):
        alternatives = ("click[back to search]", "click[buy now]")
        states[state.step.action] = [state.judge(action).margin for action in alternatives]
    assert states["search[heirloom]"] == [None, None]
    assert states["click[b00teapot1]"] == [None, 1]
    assert states["click[green]"] == [None, UNREACHABLE], "nothing undoes a wrong purchase"


@pytest.mark.slow
def test_webshop_plays_alike_in_the_pool_and_here(tmp_path: Path) -> None:
    import ray

    from verl_act.envs.pool import EnvPool

    tasks = list_tasks("dev")[:4]
    actions = ["search[black shoes]", "click[next >]", "click[nothing]", "search[tea]", "click[back to search]"]

    async def episode(pool: EnvPool, task: Task) -> list[object]:
        session = await pool.open(task)
        shown: list[object] = [session.first, *[await session.step(action) for action in actions]]
        await session.close()
        return shown

    async def run() -> list[list[object]]:
        pool = EnvPool("webshop", {"observation": "brief"}, actors=1)
        return await asyncio.gather(*(episode(pool, task) for task in tasks))

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        played = asyncio.run(run())
    finally:
        ray.shutdown()
    environment = WebShopEnvironment(observation="brief")
    for task, shown in zip(tasks, played, strict=True):
        assert shown == [environment.reset(task), *(environment.step(action) for action in actions)]


def test_importing_the_registry_imports_no_search_engine() -> None:
    import subprocess

    code = "import sys, verl_act.envs.registry; print({'regex', 'scipy.sparse', 'rapidfuzz'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
