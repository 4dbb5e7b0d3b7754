"""Settings as words of the command line, and back: every value comes back, and what is odd is refused in our words."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import typer.main
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recipe_stages import RECIPE_NAMES

from verl_act.__main__ import app
from verl_act.chain import load_recipe
from verl_act.chain.plan import run_plan
from verl_act.chain.stages import CommandStage
from verl_act.command_line import settings_from, words
from verl_act.errors import ActError
from verl_act.run_folder import RunFolder
from verl_act.settings.data import ExpertSettings

LETTERS = st.text(st.characters(exclude_characters="$"))  # `${` begins an interpolation
KEYS = LETTERS.filter(lambda key: len(key) <= 80)  # escaped, a key of YAML has at most 1,024 characters
COMMAND: Any = typer.main.get_command(app)
CHANGES = [
    ["games.counts=null", "env_settings={data: /somewhere}"],
    ["training.action.data=episodes", "evaluate.limit=10"],
    ["training.action.config=[act=action_ppo]", "device=null"],
    ["model=organisation/model", "expert.limits={train: 7}", "engine_options={gpu_memory_utilization: 0.5}"],
    ["template=cot", "template_options={admissible_in_choice: false}", "seed=3", "valid_splits=[valid_seen]"],
]


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, []) for name in RECIPE_NAMES), *(("alfworld/quickstart", changes) for changes in CHANGES)],
    ids=lambda part: part if isinstance(part, str) else " ".join(part) or "as it is",
)
def test_every_command_line_gives_the_settings_of_its_stage(name: str, changes: list[str], tmp_path: Path) -> None:
    for stage in run_plan(load_recipe(name, changes), RunFolder(tmp_path)):
        if isinstance(stage, CommandStage):
            _, module, package, group, title, *arguments = stage.argv()
            assert (module, package) == ("-m", "verl_act")
            context = COMMAND.commands[group].commands[title].make_context(title, arguments)
            assert context.params.pop("out", stage.output) == stage.output
            assert settings_from(type(stage.settings), context.params) == stage.settings


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
        | LETTERS,
        lambda values: st.lists(values) | st.dictionaries(KEYS, values),
    )
)
@example(1e-05)
@example("1e-05")
@example("2026-11-30")
@example("\x7f \u2028 😀 \\ud83d")
def test_a_mapping_of_the_command_line_keeps_every_value(value: Any) -> None:
    settings = ExpertSettings(env="alfworld", split="train", env_settings={"key": value})
    context = COMMAND.commands["data"].commands["expert"].make_context("expert", ["--out", "out", *words(settings)])
    del context.params["out"]
    assert settings_from(ExpertSettings, context.params) == settings


COMMAND: Any = typer.main.get_command(app)
DEEP = "[" * 5000
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
ODD = st.sampled_from(["", "???", "${seed}", "${", "train"])
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | TEXT | ODD
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
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
    "dev embedded-model": ["--trajectories", "FILE"],
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
