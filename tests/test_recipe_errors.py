"""Malformed recipes, changes and JSON options: one sentence with file and key, whatever they hold."""

from __future__ import annotations

import json
import os
from contextlib import suppress
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
from verl_act.chain.check import check_settings
from verl_act.chain.methods import plan
from verl_act.chain.recipe import Recipe
from verl_act.errors import ActError, ConfigError
from verl_act.run_folder import RunFolder
from verl_act.settings.base import Settings

COMMAND: Any = typer.main.get_command(app)
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
    pairs = load_recipe("alfworld/quickstart", ["pairs={candidates:3,source:admissible}"]).pairs
    assert (pairs.max_alternatives_per_state, pairs.candidates, pairs.source) == (3, 3, "admissible")
    assert load_recipe("alfworld/quickstart", ["env_settings={data: 'C:x'}"]).env_settings == {"data": "C:x"}


def test_references_to_verls_own_keys_reach_verl(tmp_path: Path) -> None:
    from verl_act.chain.check import _composed

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
    assert _composed(stage).trainer.default_local_dir == "runs/mine"


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


MAPPINGS = [
    (f"{group} {name}", parameter.opts[0])
    for group, commands in COMMAND.commands.items()
    for name, command in getattr(commands, "commands", {}).items()
    for parameter in command.params
    if getattr(parameter, "metavar", None) == "KEY=VALUE"
]
REQUIRED = {
    "data games": [],
    "data expert": ["alfworld", "train"],
    "data import": ["alfworld", "FILE"],
    "data alternatives": ["--trajectories", "FILE", "--model", "/nowhere/model"],
    "data pairs": ["--trajectories", "FILE", "--source", "admissible"],
    "data audit": ["--pairs", "FILE"],
    "data tasks": ["alfworld", "--splits", "train"],
    "data reflect": ["--trajectories", "FILE", "--pairs", "FILE", "--model", "/nowhere/model"],
    "data sft": ["--trajectories", "FILE", "--model", "/nowhere/model"],
    "eval run": ["--model", "/nowhere/model", "--trajectories", "FILE"],
    "dev methods-table": ["RUN"],
}
KEYS = st.sampled_from(["train", "n", "data", "max_steps", "history_length", "max_listed", "ACT", "steps"])
ENTRY = st.tuples(KEYS | TEXT, VALUE.map(json.dumps) | TEXT | st.sampled_from(["{", "[", "&a", "*a", "!x 5"]))


@settings(max_examples=40)
@given(st.sampled_from(MAPPINGS), ENTRY.map("=".join))
@example(("data games", "--counts"), "train=1.5")
@example(("data games", "--counts"), "train=" + DEEP)
@example(("data games", "--counts"), "train=" + "9" * 5000)
@example(("data games", "--counts"), "train")
@example(("dev methods-table", "--methods"), "A={steps: {}}")
def test_any_entry_of_a_mapping_is_taken_or_refused(option: tuple[str, str], entry: str) -> None:
    """The commands' data do not exist, so that none of them gets further than that."""
    command, name = option
    folder = Path(os.environ["RAY_TMPDIR"])
    (folder / "file").write_bytes(b"no table")
    (folder / "run").mkdir(exist_ok=True)
    if command == "data games" and entry.startswith("train=") and entry[6:].isdecimal() and len(entry) < 20:
        return  # games would be made
    paths = {"FILE": str(folder / "file"), "RUN": str(folder / "run")}
    words = [paths.get(word, word) for word in REQUIRED[command]]
    out = [] if command == "data audit" else ["--out", str(folder / "fuzzed-out")]
    with suppress(ActError, click.UsageError, typer.Exit):
        COMMAND.main([*command.split(), *out, *words, name, entry], standalone_mode=False)
