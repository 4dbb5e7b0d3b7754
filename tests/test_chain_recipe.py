"""Recipes: what they state, what they take from their bases, and odd recipes and changes, refused by their key."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recipe_stages import RECIPE_NAMES, write_recipe

from verl_act.chain import load_recipe
from verl_act.chain.check import check_settings
from verl_act.chain.method_stages import plan
from verl_act.chain.recipe import Recipe
from verl_act.envs.registry import REGISTERED, get_env
from verl_act.errors import ActError, ConfigError
from verl_act.prompts import get_template
from verl_act.run_folder import RunFolder
from verl_act.settings.base import Settings


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_recipe_names_what_its_environment_and_template_have(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert get_template(recipe.template, **recipe.template_options)
    assert recipe.expert.name in get_env(recipe.env).experts
    assert {recipe.train_split, *recipe.valid_splits} <= set(get_env(recipe.env).splits)


def test_steps_bound_both_rl_stages() -> None:
    bounded = load_recipe("alfworld/quickstart", steps=2)
    assert [part.overrides["trainer"]["total_training_steps"] for part in bounded.training.values()] == [2, 2]
    assert load_recipe("alfworld/quickstart", steps=10**6) == load_recipe("alfworld/quickstart")
    unbounded = ["training.critic.overrides.trainer.total_training_steps=null"]
    assert load_recipe("alfworld/quickstart", unbounded, steps=2).training["critic"] == bounded.training["critic"]


def test_an_environment_may_name_its_models_as_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(get_env("alfworld"), name="own", models={"tiny": tmp_path})
    monkeypatch.setitem(REGISTERED, spec.name, spec)
    changes = ["env=own", "games.counts=null"]
    assert load_recipe("alfworld/quickstart", [*changes, "model=tiny"]).model_path == str(tmp_path)
    assert load_recipe("alfworld/quickstart", [*changes, "model=Qwen/Qwen3-8B"]).model_path == "Qwen/Qwen3-8B"
    with pytest.raises(ConfigError, match=r"'embedded'.*tiny"):
        _ = load_recipe("alfworld/quickstart", changes).model_path


def test_a_recipe_states_only_what_differs_from_its_base(tmp_path: Path) -> None:
    base = load_recipe("alfworld/quickstart")
    write_recipe(tmp_path, "base: alfworld/quickstart\nseed: 5\n", "first.yaml")
    second = write_recipe(tmp_path, f"base: {tmp_path}/first.yaml\ngames: {{seed: 9}}\n")
    recipe = load_recipe(second, ["alternatives.n=2"])
    assert (recipe.seed, recipe.games.seed, recipe.alternatives.n) == (5, 9, 2)
    assert recipe.games.counts == base.games.counts
    assert recipe.training["critic"] == base.training["critic"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: alfworld/quickstart\nmodle: x\n", "modle"),
        (
            "base: alfworld/quickstart\ngames: {sise: small}\n",
            "'sise'.*counts",
        ),
        ("base: alfworld/quickstart\nalternatives: {n: several}\n", "alternatives.n"),
        ("base: alfworld/quickstart\ntraining: {action: {data: games}}\n", r"training\.action\.data is 'games'"),
        ("base: alfworld/quickstrat\n", "alfworld/quickstrat.*alfworld/quickstart"),
        ("- a\n- b\n", "mine.yaml"),
    ],
)
def test_a_bad_recipe_is_refused_by_its_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write_recipe(tmp_path, text))


def test_a_recipe_on_two_bases_has_what_both_state() -> None:
    """What they have in common is laid first, once: it does not undo what the first base states."""
    shop, comparison = load_recipe("webshop/quickstart"), load_recipe("alfworld/methods")
    both = load_recipe("webshop/methods")
    assert both.env == "webshop" and both.expert == shop.expert and both.evaluate.max_turns == shop.evaluate.max_turns
    assert both.methods == comparison.methods and both.training["il"] == comparison.training["il"]
    lengths = [recipe.training["critic"].overrides["data"]["max_response_length"] for recipe in (both, shop)]
    assert lengths[0] == lengths[1]
    ours, theirs, shops = (recipe.training["action"].overrides["trainer"] for recipe in (both, comparison, shop))
    assert ours == theirs != shops


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    first = write_recipe(tmp_path, f"base: {tmp_path}/b.yaml\n", "a.yaml")
    write_recipe(tmp_path, f"base: {first}\n", "b.yaml")
    with pytest.raises(ConfigError, match="cycle"):
        load_recipe(first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "'seed'.*KEY=VALUE"),
        ("sede=1", "sede"),
        ("games.sise=small", "games.*'sise'"),
        ("evaluate.mode=whole", r"evaluate\.mode is 'whole'"),
        ("seed=x", "seed"),
        ("expert.files={dev: [a.jsonl]}", "expert.files .*'dev'.* train, valid_seen, valid_unseen"),
    ],
)
def test_a_bad_change_is_refused_by_its_key(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("alfworld/quickstart", [change])


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("alfworld/quikstart")
    assert all(name in str(caught.value) for name in RECIPE_NAMES)


@pytest.mark.parametrize(
    ("name", "tasks", "limit", "turns"),
    [("alfworld", None, 1000, 50), ("webshop", 500, 1000, 15), ("scienceworld", 200, 5000, 100)],
)
def test_full_recipes_evaluate_what_the_paper_does(name: str, tasks: int | None, limit: int, turns: int) -> None:
    """All games of ALFWorld's splits, 500 goals of WebShop, 10,000 states of ScienceWorld's two splits."""
    for recipe in (load_recipe(f"{name}/full"), load_recipe(f"{name}/methods_full")):
        found = recipe.evaluate
        assert (found.task_limit, found.limit, found.max_turns) == (tasks, limit, turns) and recipe.valid_splits


DEEP = "[" * 5000
MALFORMED = [
    ("base: alfworld/quickstart\n".encode("utf-16"), "UTF-16"),
    ("base: alfworld/quickstart\nmodel: größe\n".encode("latin-1"), "UTF-8"),
    (b"base: alfworld/quickstart\nmodel: a\0b\n", "mine.yaml"),
    (b'base: alfworld/quickstart\nmodel: "a\\0b"\n', "character"),
    (b'base: alfworld/quickstart\nmodel: "\\ud800"\n', "mine.yaml"),
    (b"", "mine.yaml"),
    (b"5\n", "not a mapping"),
    (b"just words\n", "words"),
    (b"- a\n", "not a mapping"),
    (b"base: 5\n", "base is 5"),
    (b"base: {a: 1}\n", "base is"),
    (b"base: [alfworld/quickstart, 3]\n", "base is"),
    (b"base: mine.yaml\n", "cycle"),
    (b"base: " + b"x" * 300 + b"\n", "there is no recipe or file"),
    (b"base: alfworld/quickstart\ntraining: {critic: []}\n", "critic"),
    (b"base: alfworld/quickstart\ntraining: {critic: 5}\n", "critic"),
    (b"base: alfworld/quickstart\ntraining: {critic: {overrides: [a]}}\n", "overrides"),
    (b"base: alfworld/quickstart\ntraining: {critic: {overrides: {trainer: 5}}}\n", "trainer"),
    (b"base: alfworld/quickstart\ntraining: {critic: {overrides: {a..b: 5}}}\n", "a..b"),
    (b"base: alfworld/quickstart\ntraining: {critic: {overrides: {trainer.nnodes: many}}}\n", "trainer.nnodes"),
    (b"base: alfworld/quickstart\ntraining: {critic: {overrides: {trainer.x: '???'}}}\n", "training.critic.overrides"),
    (b"base: alfworld/quickstart\nvalid_splits: {a: b}\n", "valid_splits"),
    (b"base: alfworld/quickstart\ngames: {counts: [1, 2]}\n", "games.counts"),
    (b"base: alfworld/quickstart\nmethods: [ACT]\n", "methods"),
    (b"base: alfworld/quickstart\nmethods: {ACT: critic}\n", "methods"),
    (b"base: alfworld/quickstart\nmodel: ???\n", "model"),
    (b"base: alfworld/quickstart\nseed: 1\nseed: 2\n", "seed"),
    (b"base: alfworld/quickstart\nmodel: !!python/object/apply:os.getcwd []\n", "mine.yaml"),
    (b"base: alfworld/quickstart\nmodel: ${nowhere}\n", "nowhere"),
    (b"base: alfworld/quickstart\nmodel: ${model}\n", "model"),
    (b"base: alfworld/quickstart\nmodel: '${'\n", "mine.yaml"),
    (b"base: alfworld/quickstart\npairs: " + DEEP.encode() + b"\n", "nested"),
    (b"base: alfworld/quickstart\n? [a, b]\n: c\n", "mine.yaml"),
    (b"base: alfworld/quickstart\n1: c\n", "1"),
]


@pytest.mark.parametrize(("content", "words"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_recipe_is_a_sentence(
    content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert words in str(caught.value) and len(str(caught.value)) < 1000


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbfbase: alfworld/quickstart\r\nseed: 5\r\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).seed == 5


def test_a_folder_or_a_long_name_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_recipe(str(tmp_path))
    for name in ("x" * 5000, "a\0b", ""):
        with pytest.raises(ConfigError, match=r"recipe|folder"):
            load_recipe(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("valid_splits=[unclosed", "valid_splits"),
        ("pairs={unclosed", "pairs"),
        ("=5", "KEY=VALUE"),
        ("seed", "KEY=VALUE"),
        ("a..b=3", "a..b"),
        ("games=5", "games"),
        ("games.counts=[1]", "games.counts"),
        ("model=???", "model"),
        ("model=", "model"),
        ("pairs=" + "{a: " * 3000, "nested"),
        ("x" * 250 + "=1", "xxx"),
        ("++seed=1", "++seed"),
        ("base=alfworld/full", "base"),
    ],
)
def test_a_malformed_change_is_a_sentence(change: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("alfworld/quickstart", [change])
    assert words in str(caught.value)


def test_changes_may_be_spelled_as_for_hydra() -> None:
    counts = {"train": 24, "valid_seen": 6, "valid_unseen": 6}
    spelled = load_recipe("alfworld/quickstart", ["games.counts={train:24,valid_seen:6,valid_unseen:6}"])
    assert spelled.games.counts == counts
    pairs = load_recipe("alfworld/quickstart", ["pairs={candidates:3,source:admissible}"]).pairs
    assert (pairs.max_alternatives_per_state, pairs.candidates, pairs.source) == (3, 3, "admissible")
    assert load_recipe("alfworld/quickstart", ["env_settings={data: 'C:x'}"]).env_settings == {"data": "C:x"}


def test_references_to_verls_own_keys_reach_verl(tmp_path: Path) -> None:
    from verl_act.chain.check import verl_config

    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: alfworld/quickstart\nmodel: x\nenv_settings: {data: '${oc.env:HOME}'}\n"
        "training: {critic: {overrides: {trainer.default_local_dir: 'runs/${trainer.project_name}'}}}\n",
        encoding="utf-8",
    )
    recipe = load_recipe(str(file), ["training.critic.overrides.trainer.project_name=mine"])
    assert recipe.training["critic"].overrides["trainer"]["default_local_dir"] == "runs/${trainer.project_name}"
    assert recipe.env_settings["data"] == os.environ["HOME"]
    stage = next(stage for stage in plan(recipe, RunFolder(tmp_path / "out"), [0]) if stage.name == "critic")
    assert verl_config(stage).trainer.default_local_dir == "runs/mine"


def recipe_keys(block: type[Settings] = Recipe, prefix: str = "") -> list[str]:
    keys = []
    for name, field in block.model_fields.items():
        keys.append(f"{prefix}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            keys += recipe_keys(field.annotation, f"{prefix}{name}.")
    return keys


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
ODD = st.sampled_from(["", "???", "${seed}", "${", "train"])
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | TEXT | ODD
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


@settings(max_examples=40)
@given(st.sampled_from(recipe_keys()), VALUE)
@example("methods", {"A": {"stages": ["il"], "against": [None]}})
@example("training.critic.overrides", {"trainer": {"total_training_steps": "${x}"}})
@example("expert.files", {"train": ["a\x1bb"]})
def test_any_value_of_any_key_is_taken_or_refused(
    key: str,
    value: Any,
) -> None:
    """Never another error than ours; what is taken can be checked."""
    change: Any = value
    for part in reversed(key.split(".")):
        change = {part: change}
    text = yaml.safe_dump({"base": "alfworld/quickstart", **change}, allow_unicode=True)
    folder = Path(os.environ["RAY_TMPDIR"])
    (folder / "fuzzed.yaml").write_text(text, encoding="utf-8")
    with suppress(ActError):
        recipe = load_recipe(str(folder / "fuzzed.yaml"), steps=2)
        planned = plan(recipe, RunFolder(folder / "out"), [0])
        if not recipe.engine_options and not recipe.evaluate.engine_options and recipe.env == "alfworld":
            check_settings(recipe, planned)
