"""The small policies that come with the package: one for every quickstart, small enough, and what they say they are."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from samples import embedded_models

from verl_act.chain import load_recipe
from verl_act.data_prep.embedded.make_embedded_model import (
    make_embedded_model,
    train_tokenizer,
    warmup_rows,
    wrong_thought,
)
from verl_act.envs.dialect import Dialect, Thought
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, OptionError
from verl_act.manifest import read_manifest
from verl_act.prompts import get_template
from verl_act.schema import TRAJECTORY, Context, Step, Turn, write_rows
from verl_act.settings.data import EmbeddedModelSettings

ROOT = Path(__file__).resolve().parent.parent
MB = 2**20
EMBEDDED_MODELS = embedded_models()


def dialect_of(env: str) -> Dialect:
    dialect = get_env(env).dialect
    assert dialect is not None
    return dialect


def example(env: str) -> Context:
    """A state in the environment's words."""
    if env == "webshop":
        environment = get_env(env).make(observation="brief")
        first = environment.reset(get_env(env).tasks("train")[0])
        search = first.admissible_actions[0]
        shown = environment.step(search)
        return Context(first.goal, (Turn(first.observation, search),), shown.observation, shown.admissible_actions)
    if env == "scienceworld":
        seen = "This room is called the hallway. In it, you see: \n\tthe agent\n\ta substance called air\n\ta picture\n"
        actions = ("open door to kitchen", "look around", "go to kitchen")
        return Context("find a(n) plant.", (Turn("You move to the hallway.", "look around"),), seen, actions)
    actions = ("go to drawer 1", "go to desk 2", "look")
    return Context("put a mug in drawer", (), "You arrive at desk 1. On the desk 1, you see a mug 1.", actions)


@pytest.mark.parametrize("env", EMBEDDED_MODELS)
def test_a_quickstart_finds_its_model_and_shows_it_what_it_knows(env: str) -> None:
    recipe = load_recipe(f"{env}/quickstart")
    folder = Path(recipe.model_path)
    assert folder == EMBEDDED_MODELS[env] and recipe.template == "compact"
    assert recipe.template_options == dict(dialect_of(env).template_options)
    manifest = read_manifest(folder)
    assert manifest and manifest.seed == 0 and manifest.counts["parameters"] < 1.3e6
    figures = json.loads((folder / "warmup_metrics.json").read_text())
    assert figures["named_a_candidate"] > 0.5, "it must answer, or critic training has nothing to go by"
    assert 0.3 < figures["chose_the_expert_action"] / figures["named_a_candidate"] < 0.7, "it must judge at chance"


def test_a_recipe_finds_the_model_that_thinks() -> None:
    folder = Path(load_recipe("alfworld/methods_thinking").model_path)
    figures = json.loads((folder / "warmup_metrics.json").read_text())
    assert 0.5 < figures["chose_the_expert_action"] < figures["named_a_candidate"] < 0.8, "both can be learned"
    assert (folder / "tokenizer.json").read_text() == (EMBEDDED_MODELS["alfworld"] / "tokenizer.json").read_text()


def test_all_models_together_are_small() -> None:
    """Those of the package; others are made where they are missing."""
    listed = subprocess.run(
        ["git", "ls-files", "verl_act/assets"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert sum((ROOT / name).stat().st_size for name in listed.stdout.split()) < 12 * MB


@pytest.mark.parametrize("env", EMBEDDED_MODELS)
def test_the_tokenizer_reads_its_environment_and_can_say_every_action(env: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODELS[env])
    template, context = get_template("compact", **dialect_of(env).template_options), example(env)
    text = template.action_messages(context)[-1]["content"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) < len(text) / 2.5, "a page is read in whole words"
    read = text.lower() if dialect_of(env).lower_case else text
    assert tokenizer.decode(ids) == read
    for action in context.admissible_actions:
        reply = f"<action>{action}</action>"
        assert tokenizer.decode(tokenizer.encode(reply, add_special_tokens=False)) == reply


def test_an_action_begins_with_the_same_token_wherever_it_stands() -> None:
    """So that a model of a million parameters can copy it."""
    context = example("webshop")
    action = context.admissible_actions[2]
    template = get_template("compact", **dialect_of("webshop").template_options)
    rows = [(template.choice_messages(context, [action, "click[buy now]"]), f"<action>{action}</action>")] * 30
    tokenizer = train_tokenizer(rows, 300, dialect_of("webshop"))
    prompt, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (rows[0][0][-1]["content"], action))
    assert any(prompt[at : at + len(answer)] == answer for at in range(len(prompt)))


def make_step(env: str, number: int) -> Step:
    context = example("alfworld")
    return Step(
        context=context,
        env=env,
        split="train",
        task_id=str(number),
        task_type="put",
        trajectory_id=str(number),
        step=0,
        action=context.admissible_actions[number % 3],
        reward=1.0,
        done=True,
        success=True,
        source="search",
        inferable=True,
        plan_length=None,
        verified=True,
    )


def test_every_pass_draws_other_answers() -> None:
    template = get_template("compact")
    steps = [make_step("alfworld", number) for number in range(50)]
    passes = [
        list(warmup_rows(steps, template, EmbeddedModelSettings(trajectories=[], seed=seed))) for seed in (0, 1, 0)
    ]
    assert passes[0] == passes[2] != passes[1]


def test_weights_can_be_stored_in_half_the_size(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_rows(tmp_path / "steps.parquet", [make_step("alfworld", n).to_row() for n in range(40)], TRAJECTORY)
    small = {"vocabulary": 300, "layers": 1, "width": 32, "heads": 2, "feed_forward": 32, "steps": 2, "held_out": 4}
    sizes = {}
    for storage in ("float32", "bfloat16"):
        settings = {"storage": storage, "batch_size": 4, **small}
        make_embedded_model(
            EmbeddedModelSettings(trajectories=[tmp_path / "steps.parquet"], **settings),
            tmp_path / storage,
        )
        sizes[storage] = (tmp_path / storage / "model.safetensors").stat().st_size
        assert str(AutoModelForCausalLM.from_pretrained(tmp_path / storage, dtype="auto").dtype) == f"torch.{storage}"
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]


@pytest.mark.parametrize(
    ("environments", "message"),
    [
        (["alfworld", "webshop"], "'alfworld', 'webshop'"),
        (["mygame"], "'mygame'"),
    ],
)
def test_trajectories_that_make_no_model_are_told(environments: list[str], message: str, tmp_path: Path) -> None:
    steps = [make_step(env, number).to_row() for number, env in enumerate(environments)]
    write_rows(tmp_path / "steps.parquet", steps, TRAJECTORY)
    with pytest.raises(ConfigError, match=message):
        make_embedded_model(EmbeddedModelSettings(trajectories=[tmp_path / "steps.parquet"]), tmp_path / "model")


def test_an_environment_without_thoughts_makes_no_model_that_thinks(tmp_path: Path) -> None:
    write_rows(tmp_path / "steps.parquet", [make_step("webshop", 0).to_row()], TRAJECTORY)
    with pytest.raises(ConfigError, match=r"'webshop'.*`think`"):
        make_embedded_model(
            EmbeddedModelSettings(trajectories=[tmp_path / "steps.parquet"], thoughts=True, held_out=0),
            tmp_path / "model",
        )


@pytest.mark.parametrize("held_out", [0, 500])
def test_too_few_trajectories_are_told(held_out: int, tmp_path: Path) -> None:
    path = tmp_path / "trajectories.parquet"
    write_rows(path, [make_step("alfworld", number).to_row() for number in range(4)], TRAJECTORY)
    with pytest.raises(ConfigError, match=f"held_out={held_out}"):
        make_embedded_model(EmbeddedModelSettings(trajectories=[path], held_out=held_out, passes=1), tmp_path / "model")


THINGS = ("mug", "pen", "book", "bowl")


def shelf(wanted: str) -> Context:
    """All things lie in front of the agent."""
    room = "You are in the middle of a room. Looking quickly around you, you see a desk 1, and a shelf 1."
    seen = "You arrive at shelf 1. On the shelf 1, you see a mug 1, a pen 1, a book 1, and a bowl 1."
    actions = (*(f"take {thing} 1 from shelf 1" for thing in THINGS), "go to desk 1", "look")
    return Context(f"put some {wanted} on desk.", (Turn(room, "go to shelf 1"),), seen, actions)


def test_a_thought_is_the_subgoal_that_the_action_serves() -> None:
    think, context = dialect_of("alfworld").think, shelf("mug")
    right = think(context, context.goal, None)
    assert right == Thought("take mug 1 from shelf 1", "take mug 1 from shelf 1")
    assert think(context, "put some plate on desk.", None) == Thought("find plate", "go to desk 1")
    assert think(context, "dance with a mug", None) is None
    goals = [context.goal, "dance with a mug", "put some pen on desk."]
    assert wrong_thought(think, context, goals, right.action) == Thought(*["take pen 1 from shelf 1"] * 2)
    assert wrong_thought(think, context, goals[:2], right.action) is None


def test_answers_of_a_model_that_thinks_follow_from_their_thoughts() -> None:
    steps = [
        replace(make_step("alfworld", number), context=shelf(thing), action=f"take {thing} 1 from shelf 1")
        for number, thing in enumerate([*THINGS] * 25)
    ]
    settings = EmbeddedModelSettings(trajectories=[], thoughts=True, choice_share=0.5)
    rows = list(warmup_rows(steps, get_template("compact"), settings, dialect_of("alfworld").think))
    right: dict[str, list[bool]] = {"act": [], "pick": []}
    for messages, answer in rows:
        prompt = messages[-1]["content"]
        thought, action = re.fullmatch("<think>(.+)</think><action>(.+)</action>", answer).groups()
        assert thought == action, "the action follows from the thought, right or wrong"
        wanted = re.search("put some (.+) on", prompt).group(1)
        right["pick" if "\npick :" in prompt else "act"].append(thought == f"take {wanted} 1 from shelf 1")
    assert len(right["act"]) == len(steps) and len(right["pick"]) > 50
    assert 0.45 < sum(right["act"]) / len(right["act"]) < 0.75
    assert 0.3 < sum(right["pick"]) / len(right["pick"]) < 0.7, "it judges at chance"


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match="mygame"):
        _ = load_recipe("alfworld/quickstart", ["env=mygame", "games.counts=null"]).model_path
    with pytest.raises(OptionError, match="--storage"):
        EmbeddedModelSettings(trajectories=[], storage="int8")
