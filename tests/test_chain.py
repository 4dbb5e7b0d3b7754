"""The chain without its engines: recipes, the commands they become, the check, and which stages are done again.

What needs vLLM and verl is in `test_end_to_end.py`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import typer.main
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from samples import make_tokenizer
from script_stages import Script, Trainer, script, trainer
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

from verl_act.__main__ import app
from verl_act.chain import load_recipe, run_recipe
from verl_act.chain import train as train_module
from verl_act.chain.check import _accelerators as accelerators
from verl_act.chain.check import _configuration, _disk, _Warning, _weights_gib, check_run
from verl_act.chain.check import compose as compose_stage
from verl_act.chain.hydra_overrides import hydra_value
from verl_act.chain.methods import method_stages, only
from verl_act.chain.plan import run_plan
from verl_act.chain.recipe import RECIPES, Recipe
from verl_act.chain.run import run_stages
from verl_act.chain.stages import CommandStage, Stage, TrainingStage
from verl_act.chain.train import _prepare, train
from verl_act.command_line import settings_from, words
from verl_act.engine import Engine
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, DataError, EngineError
from verl_act.evaluate.files import FILES
from verl_act.manifest import make_manifest, write_manifest
from verl_act.prompts import get_template
from verl_act.run_folder import RunFolder
from verl_act.schema import read_steps
from verl_act.settings.base import INPUT
from verl_act.settings.data import ExpertSettings, SftSettings
from verl_act.settings.model import ModelSettings

RECIPE_NAMES = sorted(
    str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml") if path.parent.name != "layers"
)
LETTERS = st.text(st.characters(exclude_characters="$"))  # `${` begins an interpolation
COMMAND: Any = typer.main.get_command(app)
VARIANTS = [
    [],
    ["games.counts=null", "env_settings={data: /somewhere}"],
    ["training.action.data=episodes", "evaluate.limit=10"],
    ["training.action.config=[act=action_ppo]", "device=null"],
    ["model=organisation/model", "expert.limits={train: 7}", "engine_options={gpu_memory_utilization: 0.5}"],
    ["template=cot", "template_options={admissible_in_choice: false}", "seed=3", "valid_splits=[valid_seen]"],
]


def write_recipe(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: " ".join(variant) or "as it is")
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_command_line_gives_the_settings_of_its_stage(name: str, variant: list[str], tmp_path: Path) -> None:
    for stage in run_plan(load_recipe(name, variant), RunFolder(tmp_path)):
        if isinstance(stage, CommandStage):
            _, module, package, group, title, *arguments = stage.argv()
            assert (module, package) == ("-m", "verl_act")
            context = COMMAND.commands[group].commands[title].make_context(title, arguments)
            assert context.params.pop("out", None) == stage.out
            assert settings_from(type(stage.settings), context.params) == stage.settings


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
        | LETTERS,
        lambda values: st.lists(values) | st.dictionaries(LETTERS, values),
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


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_recipe_names_what_its_environment_and_template_have(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert get_template(recipe.template, **recipe.template_options)
    assert recipe.expert.name in get_env(recipe.env).experts
    assert {recipe.train_split, *recipe.valid_splits} <= set(get_env(recipe.env).splits)


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_input_is_written_by_an_earlier_stage(name: str, tmp_path: Path) -> None:
    written: list[Path] = []
    for stage in run_plan(load_recipe(name), RunFolder(tmp_path)):
        for path in stage.inputs:
            ours = path.is_relative_to(tmp_path)
            assert not ours or any(path.is_relative_to(output) for output in written), f"{stage.name}: {path}"
        written.append(stage.output)


def training(recipe: Recipe, out: Path) -> dict[str, TrainingStage]:
    return {stage.name: stage for stage in run_plan(recipe, RunFolder(out)) if isinstance(stage, TrainingStage)}


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


def test_steps_bound_both_rl_stages() -> None:
    bounded = load_recipe("alfworld/quickstart", steps=2)
    assert [part.overrides["trainer"]["total_training_steps"] for part in bounded.training.values()] == [2, 2]
    assert load_recipe("alfworld/quickstart", steps=10**6) == load_recipe("alfworld/quickstart")
    unbounded = ["training.critic.overrides.trainer.total_training_steps=null"]
    assert load_recipe("alfworld/quickstart", unbounded, steps=2).training["critic"] == bounded.training["critic"]


def test_override_keys_may_be_dotted_or_nested(tmp_path: Path) -> None:
    overrides = "{trainer.save_freq: 7, data: {train_batch_size: 4}, actor_rollout_ref.rollout.n: 2}"
    recipe = write_recipe(tmp_path, f"base: alfworld/quickstart\ntraining: {{critic: {{overrides: {overrides}}}}}\n")
    stage = training(load_recipe(recipe, ["training.critic.overrides.trainer.test_freq=3"]), tmp_path)["critic"]
    for word in ("trainer.save_freq=7", "data.train_batch_size=4", "actor_rollout_ref.rollout.n=2"):
        assert [entry for entry in stage.argv() if entry.startswith(word.split("=")[0] + "=")] == [word]
    assert "trainer.test_freq=3" in stage.argv()


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
            "games has no key 'sise'; its keys are .*counts",
        ),
        ("base: alfworld/quickstart\nalternatives: {n: several}\n", "alternatives.n"),
        ("base: alfworld/quickstart\ntraining: {action: {data: games}}\n", r"training\.action\.data is 'games'"),
        ("base: alfworld/quickstrat\n", "alfworld/quickstrat.*the recipes are.*alfworld/quickstart"),
        ("- a\n- b\n", "not a mapping"),
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
        ("seed", "'seed' is not of the form KEY=VALUE"),
        ("sede=1", "sede"),
        ("games.sise=small", "games has no key 'sise'"),
        ("evaluate.mode=whole", r"evaluate\.mode is 'whole'"),
        ("seed=x", "seed"),
        ("expert.files={dev: [a.jsonl]}", "expert.files has 'dev'; the splits are train, valid_seen, valid_unseen"),
    ],
)
def test_a_bad_change_is_refused_by_its_key(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("alfworld/quickstart", [change])


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("alfworld/quikstart")
    assert all(name in str(caught.value) for name in RECIPE_NAMES)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of a model folder that the check reads: a configuration, a tokenizer with a chat template, weights' size."""
    folder = tmp_path_factory.mktemp("policy")
    make_tokenizer(["go"]).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 64, **sizes}))
    (folder / "model.safetensors").write_text("of a size that is known")
    return folder


def test_the_check_passes_where_all_is_there(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"model={policy}", "games.counts={train: 3, valid_seen: 1, valid_unseen: 1}"]
    check_run(load_recipe("alfworld/quickstart", changes), RunFolder(tmp_path / "out"), [0])
    shown = capsys.readouterr().out
    assert "wrong" not in shown
    for subject in ("versions", "device: cpu", "model", "prompt", "data: 5 games", "disk", "critic configuration"):
        assert f"ok    {subject}" in shown


def eight_billion(folder: Path) -> Path:
    """Weights in 16 bits, on no disk."""
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as weights:
        weights.truncate(2 * 8 * 10**9)
    return folder


def disk(recipe: Recipe, out: Path, free_gib: int, monkeypatch: pytest.MonkeyPatch, seeds: Sequence[int] = (0,)) -> str:
    usage = SimpleNamespace(free=free_gib * 2**30)
    monkeypatch.setattr("verl_act.chain.check.shutil.disk_usage", lambda _: usage)
    folder = RunFolder(out)
    return _disk(recipe, folder, method_stages(recipe, folder, seeds) if recipe.methods else run_plan(recipe, folder))


def test_the_check_knows_what_checkpoints_and_models_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = f"model={eight_billion(tmp_path / 'model')}"
    full, out = load_recipe("alfworld/full", [change]), tmp_path / "out"
    # Two checkpoints that are kept and one being written, of 128 GB each; two models of 32 GB.
    assert disk(full, out, 418, monkeypatch) == "418 GiB free, 417 needed"
    with pytest.raises(ConfigError, match=r"416.0 GiB free.*at least 417.*2 trained models"):
        disk(full, out, 416, monkeypatch)
    many = load_recipe("alfworld/full", [change, "training.critic.overrides.trainer.max_actor_ckpt_to_keep=9999"])
    with pytest.raises(ConfigError, match=r"at least \d{7}"):
        disk(many, out, 416, monkeypatch)
    names = ["Self-reflection", "ACT", "IL", "RL", "ACT -> IL", "ACT -> RL"]
    methods = only(load_recipe("alfworld/methods_full", [change]), names)
    assert disk(methods, out, 9999, monkeypatch) == "9999 GiB free, 536 needed", "six models"
    with pytest.raises(ConfigError, match=r"at least 894.*18 trained models"):
        disk(methods, out, 800, monkeypatch, seeds=(0, 1, 2))
    for stage in method_stages(methods, RunFolder(out), [0]):
        stage.output.mkdir(parents=True, exist_ok=True)
    assert disk(methods, out, 3, monkeypatch) == "3 GiB free, 2 needed", "all is trained"
    with pytest.raises(ConfigError, match=r"1.0 GiB free.*at least 2"):
        disk(methods, out, 1, monkeypatch)


def test_the_check_warns_of_checkpoints_without_a_bound(tmp_path: Path) -> None:
    change = "training.critic.overrides.trainer.max_actor_ckpt_to_keep=null"
    recipe = load_recipe("alfworld/quickstart", [change, "training.critic.overrides.trainer.total_training_steps=null"])
    stages = training(recipe, tmp_path)
    told = _configuration(recipe, stages["critic"])
    assert isinstance(told, _Warning) and "max_actor_ckpt_to_keep=2" in told
    assert not isinstance(_configuration(recipe, stages["action"]), _Warning)


def test_a_model_whose_size_is_not_known_is_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe = load_recipe("alfworld/quickstart", ["model=organisation/model"])
    found = disk(recipe, tmp_path, 50, monkeypatch)
    assert isinstance(found, _Warning) and "weights of organisation/model are not on" in found
    assert "28 times their size in 16 bits" in found and "2 trained models" in found
    monkeypatch.setattr("verl_act.chain.check._checks", lambda *_: [("disk", lambda: found)])
    check_run(recipe, RunFolder(tmp_path), [0])
    assert capsys.readouterr().out.startswith("warn  disk: 50 GiB free; unknown how much")
    with pytest.raises(ConfigError, match="at least 2"):
        disk(recipe, tmp_path, 1, monkeypatch)

    cached = tmp_path / "hub" / "models--organisation--model"
    eight_billion(cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    assert _weights_gib("organisation/model") == pytest.approx(14.9, abs=0.01)
    with pytest.raises(ConfigError, match="at least 417"):
        disk(recipe, tmp_path, 50, monkeypatch)


def test_the_check_reads_every_methods_prompt(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(policy, model)
    strict = "{% if enable_thinking is defined %}{{ raise_exception('it always thinks') }}{% endif %}"
    tokenizer = make_tokenizer(["go"])
    tokenizer.chat_template = strict + str(tokenizer.chat_template)
    tokenizer.save_pretrained(model)
    prompts = {
        "As it is": {},
        "Typo": {"template": "no_such_template"},
        "Option": {"template_options": {"history_lenght": 3}},
        "Thinks": {"chat_template_kwargs": {"enable_thinking": False}},
        "Other": {"template_options": {"history_length": 3}, "chat_template_kwargs": {"other": 1}},
    }
    methods = {name: {"stages": [], **prompt} for name, prompt in prompts.items()}
    games = {"counts": {"train": 3, "valid_seen": 1, "valid_unseen": 1}}
    settings = {"base": "alfworld/quickstart", "model": str(model), "games": games, "methods": methods}
    recipe = load_recipe(write_recipe(tmp_path, yaml.safe_dump(settings, sort_keys=False)))
    with pytest.raises(ConfigError, match=r"yet: prompt of Typo, prompt of Option, prompt of Thinks, settings \("):
        check_run(recipe, RunFolder(tmp_path / "out"), [1, 2])
    shown = capsys.readouterr().out
    assert "wrong prompt of Typo: no template is called 'no_such_template'" in shown
    assert "history_lenght" in shown and "with chat_template_kwargs={'enable_thinking': False}" in shown
    assert "it always thinks" in shown and "ok    prompt of Other: CompactTemplate" in shown


def test_the_check_names_everything_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"model={tmp_path}/nowhere", "games.counts=null", f"env_settings={{data: {tmp_path}}}", "device=null"]
    changes.append(f"evaluate.reasoning=[{tmp_path}/questions.csv]")
    recipe = load_recipe("alfworld/quickstart", [*changes, "template=compcat"])
    recipe.training["critic"].overrides["data"]["train_batchsize"] = 8
    with pytest.raises(ConfigError, match="device, model, prompt, settings, data, reasoning, critic configuration"):
        check_run(recipe, RunFolder(tmp_path / "out"), [0])
    shown = capsys.readouterr().out
    assert "Add device=cpu" in shown
    assert "config.json is missing" in shown and "Give a Hugging Face folder or model id" in shown
    assert "no template is called 'compcat'" in shown
    assert re.search(rf"wrong data: .*{tmp_path}", shown)
    assert f"{tmp_path}/questions.csv: no such file" in shown
    assert "data.train_batchsize" in shown and "training.critic.overrides" in shown
    assert not (tmp_path / "out").exists(), "a check writes nothing"


def test_trajectories_of_ones_own_stand_in_for_the_expert(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [
        "env=webshop",
        "games.counts=null",
        "valid_splits=[dev]",
        "expert={name: goal, limits: {train: 3, dev: 2}}",
    ]
    theirs = tmp_path / "theirs"
    for stage in run_plan(load_recipe("alfworld/quickstart", changes), RunFolder(theirs))[:2]:
        subprocess.run(stage.argv(), check=True, capture_output=True)
    steps = read_steps(list(map(RunFolder(theirs).trajectories, ("train", "dev"))))
    rows = [
        {"task_id": task, "actions": [step.action for step in steps if step.task_id == task]}
        for task in dict.fromkeys(step.task_id for step in steps)
    ]
    published = tmp_path / "published.jsonl"
    published.write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.chdir(tmp_path)
    own = [*changes, "expert.files={train: [published.jsonl]}"]
    folder = RunFolder(tmp_path / "out")
    made = run_plan(load_recipe("alfworld/quickstart", own), folder)
    assert [stage.name for stage in made[:2]] == ["expert train", "expert dev"]
    assert [getattr(stage, "command", "") for stage in made[:2]] == ["data import", "data expert"]
    assert list(made[0].inputs)[:1] == [published]
    subprocess.run(made[0].argv(), check=True, capture_output=True)
    kept = read_steps([folder.trajectories("train")])
    assert [step.action for step in kept] == [step.action for step in steps if step.split == "train"]
    rejected = (tmp_path / "out" / "expert" / "train" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in rejected] == ["of another split"] * 2

    for change in ("expert.files={train: [nowhere.jsonl]}", "expert.name=gold"):
        with pytest.raises(ConfigError, match="settings"):
            check_run(load_recipe("alfworld/quickstart", [*changes, change]), RunFolder(tmp_path), [0])
    shown = capfd.readouterr().out
    assert "nowhere.jsonl: no such file of trajectories. (expert train)" in shown
    assert "expert.name is 'gold'" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "8 devices are requested, and this machine has 4. Set trainer.n_gpus_per_node"),
        (["trainer.n_gpus_per_node=4"], None),
        (
            ["trainer.n_gpus_per_node=3", "actor_rollout_ref.rollout.tensor_model_parallel_size=2"],
            "3 devices cannot be divided into engines of 2",
        ),
    ],
)
def test_the_check_counts_accelerators(
    changes: list[str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    recipe = load_recipe("alfworld/full", [f"training.critic.overrides.{change}" for change in changes])
    stage = training(recipe, tmp_path)["critic"]
    if message is None:
        assert accelerators(stage) == "4 of 4"
    else:
        with pytest.raises(ConfigError, match=message):
            accelerators(stage)


def test_the_check_wants_a_tokenizer_with_a_chat_template(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, untold = tmp_path / "bare", tmp_path / "untold"
    for folder, model_type in ((bare, "unheard_of"), (untold, "qwen3")):
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    tokenizer = make_tokenizer(["go"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(untold)
    for folder, remedy in ((bare, "Copy tokenizer.json"), (untold, "Add chat_template.jinja")):
        with pytest.raises(ConfigError, match="model"):
            check_run(load_recipe("alfworld/quickstart", [f"model={folder}"]), RunFolder(tmp_path / "out"), [0])
        assert remedy in capsys.readouterr().out


def run_data_stages(recipe: str, out: Path, capfd: pytest.CaptureFixture[str], *changes: str) -> dict[str, bool]:
    """Run the chain up to the first stage that needs its (missing) model; stage -> whether it was done again."""
    with pytest.raises(EngineError, match=r"'alternatives' failed with status 2.*finished stages are skipped"):
        run_recipe(recipe, out, changes)
    shown = capfd.readouterr()
    assert "no model here (config.json is missing)" in shown.err
    done = re.findall(r"\[\d+/\d+\] ([\w ]+): (up to date|done)", shown.out)
    return {name: what == "done" for name, what in done}


def test_only_what_depends_on_a_change_is_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {
        "base": "alfworld/quickstart",
        "model": str(tmp_path / "nowhere"),
        "valid_splits": ["valid_seen"],
        "games": {"counts": {"train": 6, "valid_seen": 2, "valid_unseen": 0}},
        "workers": 1,
    }
    recipe, out = write_recipe(tmp_path, yaml.safe_dump(settings)), tmp_path / "out"
    games, train, valid = "games", "expert train", "expert valid_seen"
    assert run_data_stages(recipe, out, capfd) == {games: True, train: True, valid: True}
    assert run_data_stages(recipe, out, capfd) == {games: False, train: False, valid: False}
    fewer = run_data_stages(recipe, out, capfd, "expert.limits={train: 3}")
    assert fewer == {games: False, train: True, valid: False}
    shutil.rmtree(out / "expert" / "valid_seen")
    lost = run_data_stages(recipe, out, capfd, "expert.limits={train: 3}")
    assert lost == {games: False, train: False, valid: True}


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


SAVES = """
import json, pathlib, struct, sys, time, zipfile

def save(folder, step):
    checkpoint = pathlib.Path(folder, f"global_step_{step}")
    export = checkpoint / "huggingface"
    export.mkdir(parents=True)
    for name in ("model", "optim", "extra_state"):
        with zipfile.ZipFile(checkpoint / f"{name}_world_size_1_rank_0.pt", "w") as archive:
            archive.writestr("it/data.pkl", name)
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (checkpoint / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
    with zipfile.ZipFile(checkpoint / "data_0.pt", "w") as archive:
        archive.writestr("it/data.pkl", "loader")
    pathlib.Path(folder, "latest_checkpointed_iteration.txt").write_text(str(step))
    return export
"""
"""A checkpoint with the names of verl's SFT trainer."""
TRAINER = """
(folder,) = (word.partition("=")[2].strip('"') for word in sys.argv if word.startswith("trainer.default_local_dir="))
saved = pathlib.Path(folder, "latest_checkpointed_iteration.txt")
taken = int(saved.read_text()) if saved.exists() else 0
(save(folder, taken + 1) / "steps").write_text(str(taken + 1))
sys.exit(taken + 1 < 3)
"""
"""Stands where verl would: takes one step, goes on from its checkpoints, and dies before the third."""


def test_checkpoints_of_other_data_are_neither_gone_on_from_nor_lost(tmp_path: Path) -> None:
    data = tmp_path / "pairs.parquet"
    data.write_text("first")
    stage = trainer("critic", SAVES + TRAINER, tmp_path / "critic", [data, tmp_path / "gone"])

    def attempt() -> int:
        with pytest.raises(EngineError, match="failed with status 1"):
            train(stage)
        return len(list((tmp_path / "critic.work" / "checkpoints").glob("global_step_*")))

    assert [attempt(), attempt()] == [1, 2], "it goes on"
    data.write_text("other")
    with pytest.raises(ConfigError, match=rf"checkpoints up to .*global_step_2 .*{data} has changed.*delete .*work"):
        train(stage)
    data.write_text("first")
    less = {"actor_rollout_ref.rollout.gpu_memory_utilization": 0.4}
    _prepare(replace(stage, overrides=less))
    raised = replace(stage, overrides={"actor.lr": 2})
    with pytest.raises(ConfigError, match=r"actor\.lr was None and is 2"):
        train(raised)
    shutil.rmtree(tmp_path / "critic.work")
    assert [attempt(), attempt()] == [1, 2], "it begins anew, then goes on"
    train(stage)
    assert (stage.output / "model" / "steps").read_text() == "3"


LEAVES_ITS_ENGINE = """
import os, pathlib, subprocess, sys, time
(folder,) = (word.partition("=")[2].strip('"') for word in sys.argv if word.startswith("trainer.default_local_dir="))
quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **quiet)
pathlib.Path(folder, "global_step_1", "huggingface").mkdir(parents=True)
pathlib.Path(folder, "..", "..", "engine").write_text(str(engine.pid))
metrics = pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"])
metrics.write_text('{"step": 1, "data": {"actor/entropy": 0.5}}\\n')
time.sleep(1)
"""
"""Stands where verl would: takes a step and ends, and a process of its own goes on."""


def test_what_a_run_leaves_is_ended_before_the_next_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "_GRACE_SECONDS", 0.5)
    stage = trainer("critic", LEAVES_ITS_ENGINE, tmp_path / "critic")
    train(stage)
    engine = int((tmp_path / "engine").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(engine) and psutil.Process(engine).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the engine of a run that is over still holds its memory"
        time.sleep(0.05)


KILLED_AT_ITS_END = """
(folder,) = (word.partition("=")[2].strip('"') for word in sys.argv if word.startswith("trainer.default_local_dir="))
save(folder, len(list(pathlib.Path(folder).glob("global_step_*"))) + 3)
time.sleep(1)
print("saved", flush=True)
sys.exit(137)
"""
"""Stands where verl would: saves its last step and is killed before it ends; started again, it would take another."""


def test_a_run_killed_after_its_last_checkpoint_takes_no_step_more(tmp_path: Path) -> None:
    steps = {"trainer.total_training_steps": 3}
    stage = trainer("critic", SAVES + KILLED_AT_ITS_END, tmp_path / "critic", overrides=steps)
    with pytest.raises(EngineError, match="failed with status 137"):
        train(stage)
    seconds = train(stage)
    assert 0.9 < seconds < 60, "of the attempt that was killed"
    assert (stage.output / "model").is_dir() and (stage.output / "log.txt").read_text() == "saved\n"


VALUES = [
    *("/home/José", "runs/lr=1e-5", "runs (1)", "a,b", "{a: b}", "50%", "[x]", "a b ", "null", "1e-5", "'", '"'),
    *('say "hi"', "back\\slash", 'before\\"quote', "at the end\\", "both\\\\", '\\\\"', "", "two\nlines"),
]


def test_hydra_reads_values_as_they_were() -> None:
    config: dict[str, Any] = {}
    for number, value in enumerate(VALUES):
        config |= {f"path{number}": value, f"list{number}": [value, 1, None, True], f"map{number}": {"key": value}}
    words = [f"++{name}={hydra_value(entry)}" for name, entry in config.items()]
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = OmegaConf.to_container(compose("ppo_trainer", overrides=words))
    assert isinstance(composed, dict)
    assert {name: composed[name] for name in config} == config


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


def verl_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, metrics: str = "") -> tuple[list[str], Path]:
    """Train the quickstart's critic below `folder`, with a stand-in for verl; the command, and the metrics' file."""
    stage = training(load_recipe("alfworld/quickstart"), folder)["critic"]
    seen: list[tuple[list[str], Path]] = []

    def verl(stage: TrainingStage, command: list[str], environment: dict[str, str], log: Path) -> int:
        seen.append((command, Path(environment["VERL_FILE_LOGGER_PATH"])))
        seen[0][1].write_text(metrics)
        log.write_text("")
        (log.parent / "checkpoints" / "global_step_1" / "actor" / "huggingface").mkdir(parents=True)
        return 0

    monkeypatch.setattr("verl_act.chain.train._watch", verl)
    train(stage)
    return seen[0]


TRAINS = (
    "import pathlib, sys; word = next(word for word in sys.argv if 'default_local_dir' in word);"
    "folder = word.partition('=')[2].strip('\"');"
    "model = pathlib.Path(folder, 'global_step_1', 'huggingface'); model.mkdir(parents=True);"
    "(model / 'weights').write_text(sys.argv[1])"
)
"""Stands where verl would: its model is its first argument."""
MEASURES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def trained(out: Path, name: str, begins: str | None = None, settings: str = "") -> Trainer:
    inputs = [out / begins / "model"] if begins else []
    return trainer(name, TRAINS, out / name, inputs, [name + settings])


def measured(out: Path, name: str, settings: str = "") -> Script:
    output = out / f"figures of {name}"
    return script(f"evaluate {name}", MEASURES, output, [out / name / "model"], [str(output), settings])


def test_a_model_may_be_deleted_once_it_is_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ran(*planned: Stage) -> list[str]:
        run_stages(planned, RunFolder(tmp_path))
        return re.findall(r"\] (.+): done", capfd.readouterr().out)

    def delete(*names: str) -> None:
        for name in names:
            shutil.rmtree(tmp_path / name / "model")

    critic, il = trained(tmp_path, "critic"), trained(tmp_path, "critic+il", "critic")
    after = [measured(tmp_path, "critic"), measured(tmp_path, "critic+il")]
    assert len(ran(critic, il, *after)) == 4
    delete("critic", "critic+il")
    assert ran(critic, il, *after) == []
    assert not (tmp_path / "critic" / "model").exists()
    # What is new, or asked otherwise, and what it begins with.
    rl = trained(tmp_path, "critic+rl", "critic")
    assert ran(critic, il, rl, *after) == ["critic", "critic+rl"]
    delete("critic")
    otherwise = measured(tmp_path, "critic+il", "greedy")
    assert ran(critic, il, rl, after[0], otherwise) == ["critic", "critic+il", "evaluate critic+il"]
    # A model that has come out otherwise is measured anew; those after it come out the same here.
    other = trained(tmp_path, "critic", settings=" with more steps")
    delete("critic", "critic+il", "critic+rl")
    assert ran(other, il, rl, after[0], otherwise) == ["critic", "critic+il", "critic+rl", "evaluate critic"]
    # An output that is gone is made again.
    (tmp_path / "figures of critic").unlink()
    delete("critic", "critic+il")
    assert ran(other, il, rl, after[0], otherwise) == ["critic", "evaluate critic"]


def test_an_input_that_no_stage_made_is_not_taken_for_deleted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("x")
    output = tmp_path / "figures"
    stage = script("evaluate", MEASURES, output, [data], [str(output), ""])
    run_stages([stage], RunFolder(tmp_path))
    data.unlink()
    with pytest.raises(DataError, match="data: no such file or folder"):
        run_stages([stage], RunFolder(tmp_path))


RUNS_ITS_GAMES = """
import pathlib, sys
from script_stages import script
from verl_act.chain.run import run_stages
from verl_act.run_folder import RunFolder
out = pathlib.Path(sys.argv[1])
run_stages([script("games", sys.argv[2], out / "games", arguments=[str(out)])], RunFolder(out))
"""
MAKES_GAMES = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[1])
with (out / "begun").open("a") as file:
    file.write("x")
while not (out / "go").exists():
    time.sleep(0.05)
(out / "games").mkdir()
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("killed", [False, True])
def test_of_two_processes_one_runs_a_stage_and_the_other_waits(killed: bool, tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUNS_ITS_GAMES, str(tmp_path), MAKES_GAMES]
        with (tmp_path / name).open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def wait_for(*texts: str) -> None:
        logs = [tmp_path / name for name in ("begun", "first", "second")]
        while not all(text in "".join(log.read_text() for log in logs if log.exists()) for text in texts):
            time.sleep(0.05)

    with start("first") as first:
        wait_for("x")
        with start("second") as second:
            wait_for("[1/1] games: waiting, process")
            assert (tmp_path / "begun").read_text() == "x"
            if killed:
                first.kill()
                wait_for("xx")  # the lock died with it
            (tmp_path / "go").touch()
            assert second.wait() == 0
    assert ("done in" if killed else "[1/1] games: up to date") in (tmp_path / "second").read_text()
    assert (tmp_path / "begun").read_text() == ("xx" if killed else "x")


def test_where_files_cannot_be_locked_that_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    run_stages([script("it", "pass", tmp_path)], RunFolder(tmp_path))
    assert "it: done" in capsys.readouterr().out
    assert any("no lock" in record.message and "one process at a time" in record.message for record in caplog.records)


OUT_OF_MEMORY = (
    "\x1b[33m(raylet)\x1b[0m 4 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed"
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "said",
    [
        "\x1b[36m(vLLMHttpServer pid=7)\x1b[0m ERROR 11-30 03:14:43 [async_llm.py:744] "
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)",
        "(AgentLoopWorkerTQ pid=7, ip=10.0.0.2) ray.exceptions.RayTaskError(EngineDeadError): "
        "ray::vLLMHttpServer.generate() (pid=8)",
        OUT_OF_MEMORY,
    ],
)
def test_a_run_that_has_lost_a_part_is_ended(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a run would wait for ever. Why it was ended stands at the end of its log, which the error shows."""
    monkeypatch.setattr("verl_act.chain.train._STANDSTILL_SECONDS", 1.0)
    code = f"import time; print({said!r}, flush=True); time.sleep(600)"
    stage = trainer("critic", code, tmp_path / "critic")
    with pytest.raises(EngineError, match=rf"'critic' failed with status -15(.|\n)*{re.escape(said)}"):
        train(stage)


def test_a_run_that_goes_on_after_a_kill_for_memory_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment's process, which the pool replaces, or another job's on the same cluster."""
    monkeypatch.setattr("verl_act.chain.train._STANDSTILL_SECONDS", 2.0)
    step = """pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"]).write_text('{"step": 1, "data": {"a": 1}}\\n')"""
    shared = f"import os, pathlib, time; print({OUT_OF_MEMORY!r}, flush=True); {step}; time.sleep(4)"
    line = "(TaskRunnerV1 pid=7) step:1 - a:1"
    elsewhere = f"import time; print({OUT_OF_MEMORY!r}, flush=True); print({line!r}, flush=True); time.sleep(4)"
    for code in (shared, elsewhere):
        stage = trainer("critic", code, tmp_path / "critic")
        with pytest.raises(EngineError, match="left no exported model"):
            train(stage)


QUOTED = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."


@pytest.mark.timeout(60)
def test_what_a_reply_quotes_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_act.chain.train._STANDSTILL_SECONDS", 0.5)
    replies = [
        QUOTED,
        f"(TaskRunnerV1 pid=7) {QUOTED}",
        f"(RewardLoopWorker pid=7) [response] (vLLMHttpServer pid=7) {QUOTED}",
        f"(RewardLoopWorker pid=7) a\r(vLLMHttpServer pid=7) {QUOTED}",
        f"(RewardLoopWorker pid=7) a\u2028(vLLMHttpServer pid=7) {QUOTED}",
        f"(TaskRunnerV1 pid=7) {OUT_OF_MEMORY}",
        *("step:1 - a:b:c - critic/score/mean:odd", "step:99999999999999999999 - ", "step:x - critic/score/mean:1"),
    ]
    metrics = ["[1]", "{", "null", '{"step": "x", "data": 1}', '{"step": 2, "data": {"critic/score/mean": "odd"}}']
    code = (
        f"import os, pathlib, time; print({chr(10).join(replies)!r}, flush=True);"
        f"pathlib.Path(os.environ['VERL_FILE_LOGGER_PATH']).write_text({chr(10).join([*metrics, ''])!r}); time.sleep(2)"
    )
    stage = trainer("critic", code, tmp_path / "critic")
    with pytest.raises(EngineError, match="left no exported model"):
        train(stage)


def test_the_bar_shows_all_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step = """path.write_text('{"step": 3, "data": {"critic/score/mean": 0.25}}\\n')"""
    code = f"""
import os, pathlib, time
path = pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"])
print("(TaskRunnerV1 pid=7) INFO:2026-11-30 03:14:43,839:Total training steps: 6", flush=True)
time.sleep(0.5)
{step}
time.sleep(0.5)
"""
    stage = trainer("critic", code, tmp_path / "critic")
    with pytest.raises(EngineError, match="left no exported model"):
        train(stage)
    assert re.search(r"critic: +50%.*3/6 .*score=0\.250", capfd.readouterr().err)


def test_a_stages_work_is_deleted_after_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while deleting, the next run must neither train again nor export what is half deleted."""
    code = (
        "import pathlib, sys; word = next(word for word in sys.argv if 'default_local_dir' in word);"
        "folder = word.partition('=')[2].strip('\"');"
        "model = pathlib.Path(folder, 'global_step_1', 'huggingface'); model.mkdir(parents=True);"
        "(model / 'weights').write_text('whole')"
    )
    stage = trainer("critic", code, tmp_path / "critic")

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("verl_act.chain.train.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stages([stage], RunFolder(tmp_path))
    assert (stage.output / "model" / "weights").read_text() == "whole"
    left = {path.name for path in tmp_path.iterdir()}
    run_stages([stage], RunFolder(tmp_path))
    assert "critic.work.deleted" in left and {path.name for path in tmp_path.iterdir()} == {".done", "critic"}
    assert (stage.output / "model" / "weights").read_text() == "whole"


def test_a_recipes_own_loggers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, _ = verl_runs(tmp_path / "none", monkeypatch)
    assert 'trainer.logger=["console","file"]' in [word.replace(" ", "") for word in command]
    stage = trainer("critic", "", tmp_path / "critic", overrides={"trainer.logger": ["wandb", "console"]})
    assert train_module._loggers(stage) == ["wandb", "console", "file"]


def test_a_model_older_than_the_last_step_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    verl_runs(tmp_path / "whole", monkeypatch, '{"step": 1, "data": {}}\n')
    assert not caplog.text
    verl_runs(tmp_path / "short", monkeypatch, '{"step": 1, "data": {}}\n{"step": 3, "data": {}}\n')
    assert "the exported model is from step 1, but verl trained to step 3" in caplog.text


def test_figures_of_one_step_in_several_lines_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"step": 1, "data": {"train/loss": 2.0, "val/loss": 3.0}}, {"step": 1, "data": {"val/loss": 4.0}}]
    verl_runs(tmp_path, monkeypatch, "".join(json.dumps(line) + "\n" for line in lines))
    (kept,) = map(json.loads, (tmp_path / "critic" / "metrics.jsonl").read_text().splitlines())
    assert kept == {"step": 1, "data": {"train/loss": 2.0, "val/loss": 4.0}}


def test_a_group_that_only_training_would_have_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe("alfworld/quickstart")
    recipe.training["critic"].config.append("act/env=alfworld")
    with pytest.raises(ConfigError, match="'act/env=alfworld'"):
        run_plan(recipe, RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("name", "tasks", "limit", "turns"),
    [("alfworld", None, 1000, 50), ("webshop", 500, 1000, 15), ("scienceworld", 200, 5000, 100)],
)
def test_full_recipes_evaluate_what_the_paper_does(name: str, tasks: int | None, limit: int, turns: int) -> None:
    """All games of ALFWorld's splits, 500 goals of WebShop, 10,000 states of ScienceWorld's two splits."""
    for recipe in (load_recipe(f"{name}/full"), load_recipe(f"{name}/methods_full")):
        found = recipe.evaluate
        assert (found.task_limit, found.limit, found.max_turns) == (tasks, limit, turns) and recipe.valid_splits


@pytest.mark.parametrize("name", ["lr=1e-5", "runs (1)", "a,b", "José"])
def test_any_folder_can_be_the_output(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, metrics = verl_runs(tmp_path / name, monkeypatch)
    overrides = command[command.index("verl.trainer.main_ppo") + 1 :]
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=overrides, return_hydra_config=True)
    work = tmp_path / name / "critic.work"
    assert config.trainer.default_local_dir == str(work / "checkpoints")
    assert config.hydra.run.dir == str(work / "hydra")
    assert config.data.train_files[0].startswith(str(tmp_path / name))
    # As `run_ppo` makes the environment of Ray's workers, also those of a cluster that runs already.
    merged = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.get("runtime_env", {}))
    assert str(metrics) == merged.env_vars.VERL_FILE_LOGGER_PATH
    assert "NCCL_DEBUG" in merged.env_vars or "NCCL_DEBUG" in os.environ
    assert metrics.is_absolute() and metrics.parent == work


def test_a_run_without_metrics_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    verl_runs(tmp_path / "with", monkeypatch, '{"step": 1, "data": {}}\n')
    assert not caplog.text
    verl_runs(tmp_path / "without", monkeypatch)
    assert "critic: the run left no metrics" in caplog.text


WRITES = """
import pathlib, sys
from verl_act.manifest import make_manifest, write_manifest
from verl_act.output_folder import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    for name in ("a.txt", "inner/b.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    write_manifest(folder, make_manifest("it", settings={}))
"""
"""Stands where a command would that writes a folder."""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: shutil.rmtree(out),
        lambda out: [shutil.rmtree(path) if path.is_dir() else path.unlink() for path in out.iterdir()],
        lambda out: (out / "inner" / "b.txt").unlink(),
        lambda out: (out / "a.txt").write_text("a"),
        lambda out: (out / "a.txt").write_text("b.txt"),
        lambda out: (out / "manifest.json").unlink(),
        lambda out: (out / "manifest.json").write_text('{"stage"'),
        lambda out: (out / ".." / ".done" / "it" / "manifest.json").write_text('{"stage"'),
    ],
    ids=["deleted", "emptied", "half emptied", "cut", "changed", "no manifest", "cut manifest", "cut record"],
)
def test_a_stage_whose_output_is_not_as_it_left_it_is_run_again(
    spoil: Callable[[Path], object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it"
    stage = script("it", WRITES, out, arguments=[str(out)])

    def outcome() -> str:
        run_stages([stage], RunFolder(tmp_path))
        return re.sub(r".*\[1/1\] it: (up to date|done).*", r"\1", capfd.readouterr().out, flags=re.DOTALL)

    assert [outcome(), outcome()] == ["done", "up to date"]
    (out / "notes.txt").touch()
    assert outcome() == "up to date", "files that were added are of no concern"
    (out / "notes.txt").unlink()
    spoil(out)
    assert [outcome(), outcome()] == ["done", "up to date"]
    assert (out / "inner" / "b.txt").read_text() == "inner/b.txt" and (out / "a.txt").read_text() == "a.txt"


def test_somebodys_files_in_the_place_of_an_output_are_not_deleted(tmp_path: Path) -> None:
    out = tmp_path / "it"
    stage = script("it", WRITES, out, arguments=[str(out)])
    run_stages([stage], RunFolder(tmp_path))
    (out / "manifest.json").unlink()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(EngineError, match="'it' failed"):
        run_stages([stage], RunFolder(tmp_path))
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_damaged_model_is_trained_again_where_it_is_needed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ran(*planned: Stage) -> list[str]:
        run_stages(planned, RunFolder(tmp_path))
        return re.findall(r"\] (.+): done", capfd.readouterr().out)

    critic, measures = trained(tmp_path, "critic"), measured(tmp_path, "critic")
    assert ran(critic, measures) == ["critic", "evaluate critic"]
    (tmp_path / "critic" / "model" / "weights").write_text("cut")
    (tmp_path / "critic" / "log.txt").unlink()
    assert ran(critic, measures) == []
    assert ran(critic, measured(tmp_path, "critic", "other questions")) == ["critic", "evaluate critic"]


def test_the_output_of_another_stage_is_not_trained_over(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest("evaluate", settings={}))
    with pytest.raises(ConfigError, match="'evaluate'"):
        train(trainer("critic", "", tmp_path))


def test_a_full_disk_at_the_export_loses_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = SAVES + TRAINER.replace("sys.exit(taken + 1 < 3)", "print('a log')")
    stage = trainer("critic", code, tmp_path / "critic", overrides={"trainer.total_training_steps": 1})

    def full(*_: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", full)
        with pytest.raises(DataError, match=f"{stage.output}: could not be written.*stays in .*critic.work"):
            train(stage)
    assert not stage.output.exists()
    train(stage)
    assert (stage.output / "model" / "steps").read_text() == "1" and (stage.output / "log.txt").read_text() == "a log\n"
