"""The stages of a recipe: the commands that they become, what they read, and what reaches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_stages import RECIPE_NAMES, training, write_recipe
from samples import make_tokenizer

from verl_act.chain import load_recipe
from verl_act.chain.check import compose as compose_stage
from verl_act.chain.method_stages import method_stages
from verl_act.chain.plan import run_plan
from verl_act.chain.recipe import Recipe
from verl_act.chain.stages import CommandStage, TrainingStage
from verl_act.engine import Engine
from verl_act.errors import ConfigError
from verl_act.evaluate.records import FILES
from verl_act.manifest import make_manifest, write_manifest
from verl_act.run_folder import RunFolder
from verl_act.settings.base import INPUT
from verl_act.settings.data import SftSettings
from verl_act.settings.model import ModelSettings


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_input_is_written_by_an_earlier_stage(name: str, tmp_path: Path) -> None:
    written: list[Path] = []
    for stage in run_plan(load_recipe(name), RunFolder(tmp_path)):
        for path in stage.inputs:
            ours = path.is_relative_to(tmp_path)
            assert not ours or any(path.is_relative_to(output) for output in written), f"{stage.name}: {path}"
        written.append(stage.output)


def commands(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Stage -> settings, of the commands."""
    planned = run_plan(recipe, RunFolder(out))
    return {stage.name: stage.settings for stage in planned if isinstance(stage, CommandStage)}


def test_the_audit_sees_pairs_as_they_will_be_shown(tmp_path: Path) -> None:
    recipe = load_recipe("webshop/full", ["audit={max_length_accuracy: 0.9}", "alternatives.limit=12"])
    planned = commands(recipe, tmp_path)
    assert planned["audit"].max_length_accuracy == 0.9
    assert planned["audit"].template_options == recipe.template_options != {}
    assert planned["alternatives"].limit == 12


def test_live_episodes_are_trained_within_the_limits_they_are_evaluated_in(tmp_path: Path) -> None:
    changes = ["training.action.data=episodes", "evaluate.max_turns=7", "evaluate.max_tokens=9", "evaluate.mode=concat"]
    recipe = load_recipe("alfworld/quickstart", changes)
    action = training(recipe, tmp_path)["action"]
    limits = {"max_turns": 7, "max_tokens_per_turn": 9, "mode": "concat"}
    assert {key: action.override(f"data.act.episode.{key}") for key in limits} == limits
    planned = commands(recipe, tmp_path)
    assert all(planned[f"evaluate {name}"].mode == "concat" for name in ("initial", "critic", "action"))
    own = load_recipe("alfworld/quickstart", [*changes, "training.action.overrides.data.act.episode.max_turns=3"])
    assert training(own, tmp_path)["action"].override("data.act.episode.max_turns") == 3
    steps = training(load_recipe("alfworld/quickstart", changes[1:]), tmp_path)["action"]
    assert steps.override("data.act.episode.max_turns") is None


def test_the_action_stage_starts_from_the_critic(tmp_path: Path) -> None:
    key = "actor_rollout_ref.model.path"
    stage = training(load_recipe("alfworld/quickstart", ["model=organisation/model"]), tmp_path)
    assert stage["critic"].override(key) == "organisation/model"
    assert stage["action"].override(key) == f"{tmp_path}/critic/model"
    assert stage["action"].override("critic.model.path") is None
    ppo = load_recipe("alfworld/quickstart", ["training.action.config=[act=action_ppo]"])
    assert training(ppo, tmp_path)["action"].override("critic.model.path") == f"{tmp_path}/critic/model"


def test_a_run_has_the_stages_that_its_recipe_lists(tmp_path: Path) -> None:
    il = "training.il={data: il, config: [act=sft], overrides: {trainer.total_training_steps: 5}}"
    recipe = load_recipe("alfworld/quickstart", [il, "stages=[critic, 'il:3', action]"])
    stages = training(recipe, tmp_path)
    assert list(stages) == ["critic", "il-3", "action"]
    assert stages["il-3"].trainer == "sft" and stages["il-3"].override("trainer.total_training_steps") == 3
    assert stages["il-3"].override("model.path") == f"{tmp_path}/critic/model"
    assert stages["action"].override("actor_rollout_ref.model.path") == f"{tmp_path}/il-3/model"
    names = [stage.name for stage in run_plan(recipe, RunFolder(tmp_path))]
    assert names[-5:] == ["evaluate critic", "evaluate il-3", "evaluate action", "comparison", "report"]
    assert "rows il" in names


def test_the_action_stage_trains_on_states_or_on_episodes(tmp_path: Path) -> None:
    steps, episodes = (
        training(load_recipe("alfworld/quickstart", [f"training.action.data={data}"]), tmp_path)["action"].inputs
        for data in ("steps", "episodes")
    )
    assert steps[0] == tmp_path / "expert" / "train" / "trajectories.parquet"
    assert [path.name for path in episodes[:2]] == ["tasks.parquet", "tasks.parquet"]


def test_override_keys_may_be_dotted_or_nested(tmp_path: Path) -> None:
    overrides = "{trainer.save_freq: 7, data: {train_batch_size: 4}, actor_rollout_ref.rollout.n: 2}"
    recipe = write_recipe(tmp_path, f"base: alfworld/quickstart\ntraining: {{critic: {{overrides: {overrides}}}}}\n")
    stage = training(load_recipe(recipe, ["training.critic.overrides.trainer.test_freq=3"]), tmp_path)["critic"]
    for word in ("trainer.save_freq=7", "data.train_batch_size=4", "actor_rollout_ref.rollout.n=2"):
        assert [entry for entry in stage.argv() if entry.startswith(word.split("=")[0] + "=")] == [word]
    assert "trainer.test_freq=3" in stage.argv()


def test_what_reads_a_model_or_answers_depends_on_their_contents(tmp_path: Path, policy: Path) -> None:
    recipe = load_recipe("alfworld/methods_thinking", [f"model={policy}"])
    folder = RunFolder(tmp_path)
    planned = [*run_plan(recipe, folder), *method_stages(recipe, folder, [0])]
    for name in ("alternatives", "reflections", "evaluate initial", "seed 0 evaluate prompting"):
        assert policy in next(stage.inputs for stage in planned if stage.name == name), name
    for stage in planned:
        if stage.name in ("comparison", "report", "methods"):
            answers = [path for path in stage.inputs if path.name == "metrics.json"]
            assert answers and all(path.with_name("episodes.jsonl") in stage.inputs for path in answers), stage.name


def test_reasoning_is_asked_of_every_model_from_the_recipes_files(tmp_path: Path) -> None:
    questions = tmp_path / "math500.jsonl"
    recipe = load_recipe("alfworld/methods", [f"evaluate.reasoning=[{questions}]", "evaluate.reasoning_max_tokens=900"])
    folder = RunFolder(tmp_path)
    planned = [*run_plan(recipe, folder), *method_stages(recipe, folder, [0])]
    evaluations = [stage for stage in planned if isinstance(stage, CommandStage) and stage.command == "eval run"]
    assert len(evaluations) == 3 + len(recipe.methods)
    for stage in evaluations:
        assert stage.settings.values(INPUT)["reasoning"] == [questions]
        assert "--reasoning-max-tokens" in stage.argv()
        assert questions in stage.inputs, "other questions are asked anew"


def test_new_answers_of_the_same_settings_are_compared_anew(tmp_path: Path) -> None:
    """An evaluation's manifest names settings and inputs, not what came of them."""
    stage = next(
        stage
        for stage in run_plan(load_recipe("alfworld/quickstart"), RunFolder(tmp_path))
        if stage.name == "comparison"
    )
    keys = set()
    for answer in ("right", "wrong"):
        for name in ("initial", "critic", "action"):
            folder = tmp_path / "evaluation" / name
            folder.mkdir(parents=True, exist_ok=True)
            for file in FILES:
                (folder / file).write_text(answer)
            write_manifest(folder, make_manifest("evaluate", settings={}))
        keys.add(make_manifest(stage.name, settings={}, inputs=list(stage.inputs)).key())
    assert len(keys) == 2


@pytest.mark.parametrize("name", ["alfworld/quickstart", "alfworld/methods"])
def test_options_of_the_chat_template_reach_every_stage(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["chat_template_kwargs={enable_thinking: false}"])
    folder = RunFolder(tmp_path)
    planned = method_stages(recipe, folder, [0]) if recipe.methods else run_plan(recipe, folder)
    for stage in planned:
        if isinstance(stage, TrainingStage):
            assert "++data.apply_chat_template_kwargs.enable_thinking=false" in stage.argv()
            compose_stage(stage)
        elif isinstance(stage.settings, ModelSettings):
            assert stage.settings.engine_options["chat_template_kwargs"] == {"enable_thinking": False}
        elif isinstance(stage.settings, SftSettings):
            assert stage.settings.chat_template_kwargs == {"enable_thinking": False}
    engine = Engine.__new__(Engine)
    engine.tokenizer, engine.chat_template_kwargs = make_tokenizer(["go"]), {"enable_thinking": False}
    engine.tokenizer.chat_template = "{{ 'go' if enable_thinking is defined else 'go go' }}"
    assert len(engine.encode([{"role": "user", "content": "go"}])) == 1


def test_a_group_that_only_training_would_have_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe("alfworld/quickstart")
    recipe.training["critic"].config.append("act/env=alfworld")
    with pytest.raises(ConfigError, match="'act/env=alfworld'"):
        run_plan(recipe, RunFolder(tmp_path))
