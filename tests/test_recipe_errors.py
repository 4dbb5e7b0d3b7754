"""Malformed recipes, changes and JSON options: one sentence with file and key, whatever they hold."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from verl_act.__main__ import app
from verl_act.chain import load_recipe
from verl_act.chain.methods import method_stages
from verl_act.chain.recipe import Recipe
from verl_act.chain.settings import check_stages
from verl_act.chain.stages import stages
from verl_act.errors import ActError, ConfigError

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
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
    (b"base: alfworld/quickstart\ncritic: []\n", "critic"),
    (b"base: alfworld/quickstart\ncritic: 5\n", "critic"),
    (b"base: alfworld/quickstart\ncritic: {overrides: [a]}\n", "overrides"),
    (b"base: alfworld/quickstart\ncritic: {overrides: {trainer: 5}}\n", "trainer"),
    (b"base: alfworld/quickstart\ncritic: {overrides: {a..b: 5}}\n", "a..b"),
    (b"base: alfworld/quickstart\ncritic: {overrides: {trainer.nnodes: many}}\n", "trainer.nnodes"),
    (b"base: alfworld/quickstart\ncritic: {overrides: {trainer.x: '???'}}\n", "critic.overrides"),
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
    with pytest.raises(ConfigError, match="is a folder"):
        load_recipe(str(tmp_path))
    for name in ("x" * 5000, "a\0b", ""):
        with pytest.raises(ConfigError, match=r"there is no recipe|is a folder"):
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
    assert load_recipe("alfworld/quickstart", ["pairs={candidates:3,source:admissible}"]).pairs == {
        "max_alternatives_per_state": 3,
        "candidates": 3,
        "source": "admissible",
    }
    assert load_recipe("alfworld/quickstart", ["env_settings={data: 'C:x'}"]).env_settings == {"data": "C:x"}


def test_references_to_verls_own_keys_reach_verl(tmp_path: Path) -> None:
    from verl_act.chain.check import _composed

    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: alfworld/quickstart\nmodel: x\nenv_settings: {data: '${oc.env:HOME}'}\n"
        "critic: {overrides: {trainer.default_local_dir: 'runs/${trainer.project_name}'}}\n",
        encoding="utf-8",
    )
    recipe = load_recipe(str(file), ["critic.overrides.trainer.project_name=mine"])
    assert recipe.critic.overrides["trainer"]["default_local_dir"] == "runs/${trainer.project_name}"
    assert recipe.env_settings["data"] == os.environ["HOME"]
    stage = next(stage for stage in stages(recipe, tmp_path / "out") if stage.name == "critic")
    assert _composed(stage).trainer.default_local_dir == "runs/mine"


def recipe_keys(settings_class: Any = Recipe, prefix: str = "") -> list[str]:
    keys = []
    for entry in fields(settings_class):
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        keys.append(f"{prefix}{entry.name}")
        if is_dataclass(default):
            keys += recipe_keys(type(default), f"{prefix}{entry.name}.")
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
@example("critic.overrides", {"trainer": {"total_training_steps": "${x}"}})
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
        planned = method_stages(recipe, folder / "out", [0]) if recipe.methods else stages(recipe, folder / "out")
        if not recipe.engine_options and not recipe.evaluate.engine_options and recipe.env == "alfworld":
            check_stages(planned)


JSON_OPTIONS = [
    (name, parameter.opts[0])
    for name, command in COMMANDS.items()
    for parameter in command.params
    if getattr(parameter, "metavar", None) == "JSON" or parameter.name == "methods"
]
REQUIRED = {
    "make-games": [],
    "collect-expert": ["alfworld", "train"],
    "import-trajectories": ["alfworld", "FILE"],
    "sample-alternatives": ["--trajectories", "FILE", "--model", "/nowhere/model"],
    "build-pairs": ["--trajectories", "FILE"],
    "check-pairs": ["--pairs", "FILE"],
    "make-tasks": ["alfworld", "--splits", "train"],
    "reflect": ["--trajectories", "FILE", "--pairs", "FILE", "--model", "/nowhere/model"],
    "make-sft": ["--trajectories", "FILE", "--model", "/nowhere/model"],
    "make-embedded-model": ["--trajectories", "FILE"],
    "evaluate": ["--model", "/nowhere/model", "--trajectories", "FILE"],
    "compare-methods": ["RUN"],
}
KEYS = st.sampled_from(["train", "candidates", "n", "data", "max_steps", "history_length", "length", "ACT"])
JSON_VALUE = st.dictionaries(KEYS | TEXT, VALUE, max_size=3).map(json.dumps)
BROKEN = st.sampled_from(
    ["", "{", "[]", "5", "null", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": "\\ud800"}', '{"a": "\\u0000"}']
)


@settings(max_examples=40)
@given(st.sampled_from(JSON_OPTIONS), JSON_VALUE | BROKEN)
@example(("make-games", "--counts"), '{"train": 1.5}')
@example(("make-games", "--counts"), DEEP)
@example(("make-games", "--counts"), '{"train": ' + "9" * 5000 + "}")
@example(("build-pairs", "--settings"), '{"trajectories": []}')
@example(("evaluate", "--pool"), '{"env": "x"}')
def test_any_json_is_taken_or_refused(option: tuple[str, str], text: str) -> None:
    """The commands' data do not exist, so that none of them gets further than that."""
    command, name = option
    folder = Path(os.environ["RAY_TMPDIR"])
    (folder / "file").write_bytes(b"no table")
    (folder / "run").mkdir(exist_ok=True)
    if command == "make-games" and '"train": 1' not in text and "train" in text:
        return  # games would be made
    places = {"FILE": str(folder / "file"), "RUN": str(folder / "run")}
    words = [places.get(word, word) for word in REQUIRED[command]]
    out = [] if command == "check-pairs" else ["--out", str(folder / "fuzzed-out")]
    with suppress(ActError, click.UsageError, typer.Exit):
        COMMANDS[command].main([*out, *words, name, text], standalone_mode=False)
