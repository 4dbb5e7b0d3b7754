"""The Hydra groups and the recipes: everything composes on verl's own configuration, and no key is a slip of the pen.

Hydra refuses an unknown key on the command line, yet merges one from a group's YAML without a word: hence the checker.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import verl_example
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from recipe_stages import RECIPE_NAMES, composed
from samples import embedded_models
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.config import RolloutConfig

import verl_act
from verl_act.chain import check, load_recipe
from verl_act.chain.hydra_overrides import flat
from verl_act.chain.plan import run_plan
from verl_act.chain.recipe import SFT_DATA
from verl_act.chain.stages import TrainingStage
from verl_act.config.settings import ActSettings, EpisodeSettings, MixtureSettings
from verl_act.envs.registry import get_env, known_envs
from verl_act.errors import ConfigError
from verl_act.run_folder import RunFolder

CONFIG = Path(verl_act.__file__).parent / "config"
GROUP_FILES = sorted(str(path.relative_to(CONFIG)) for path in CONFIG.rglob("*.yaml"))
STAGES = ["critic", "action", "action_ppo"]
ENVIRONMENTS = sorted(path.stem for path in (CONFIG / "act" / "env").glob("*.yaml"))
SFT = "sft_trainer_engine"
SFT_FILES = ["act/device/cpu_sft.yaml", "act/device/gpu_sdpa_sft.yaml", "act/sft.yaml"]
SUPERSEDED = ("custom_reward_function", "reward_model", "sandbox_fusion")
"""Top-level keys of earlier verl versions: still in its configuration, replaced by `reward.*`."""


@cache
def verl_keys(trainer: str = "ppo_trainer") -> dict[str, Any]:
    """verl's own configuration, as nested mappings."""
    plain = OmegaConf.to_container(composed(trainer=trainer), resolve=False)
    assert isinstance(plain, dict)
    return plain


def unknown_keys(config: dict[str, Any], trainer: str = "ppo_trainer") -> list[str]:
    """The dotted keys of `config` that neither verl nor this package knows."""
    return list(_unknown(config, verl_keys(trainer), ""))


def _unknown(config: dict[str, Any], known: dict[str, Any], at: str) -> Iterator[str]:
    if not known and at:  # `{}` in verl's YAML: passed on as it is, such as model.override_config
        return
    block_class = get_class(known["_target_"]) if "_target_" in known else None
    block_fields = {field.name for field in fields(block_class)} if block_class else set()
    for key, value in config.items():
        path = f"{at}.{key}".removeprefix(".")
        if path == "data.act":
            yield from _unknown_of_ours(value)
        elif at == "ray_kwargs.ray_init" and key in inspect.signature(ray.init).parameters:
            continue
        elif key not in known:
            if key not in block_fields:
                yield path
        elif isinstance(value, dict) and isinstance(known[key], dict):
            yield from _unknown(value, known[key], path)


def _unknown_of_ours(block: dict[str, Any]) -> Iterator[str]:
    for name, settings, keys in (
        ("act", ActSettings, block),
        ("act.episode", EpisodeSettings, block.get("episode", {})),
        ("act.mix", MixtureSettings, block.get("mix", {})),
    ):
        yield from (f"data.{name}.{key}" for key in keys if key not in settings.model_fields)


def read_group_file(name: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.load(CONFIG / name), resolve=False)
    assert isinstance(plain, dict)
    plain.pop("defaults", None)
    return plain


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings. A key may hold dots of its own nowhere in verl's configuration."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={json.dumps(flat[key])}" for key in flat]))  # type: ignore[return-value]


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_composes_on_verls_configuration(stage: str, device: str | None) -> None:
    config = composed(f"+act={stage}", *([f"+act/device={device}"] if device else []))
    assert ActSettings.from_config(config.data) == ActSettings()
    assert config.data.custom_cls.path == "pkg://verl_act.data.dataset"
    assert config.reward.custom_reward_function.path == "pkg://verl_act.reward_fns.route"
    assert "hf_model" in config.actor_rollout_ref.actor.checkpoint.save_contents
    assert config.algorithm.adv_estimator == ("gae" if stage == "action_ppo" else "grpo")
    if stage == "action_ppo":
        assert config.critic.model.path == config.actor_rollout_ref.model.path, "the value model begins as the policy"
    assert config.actor_rollout_ref.actor.use_kl_loss is (stage == "critic")
    assert config.trainer.experiment_name == stage
    assert config.trainer.device == (device or "cuda")
    assert not unknown_keys(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]


def validated(config: DictConfig) -> None:
    """What `verl.trainer.main_ppo` checks before it starts anything."""
    validate_config(config, need_reference_policy(config), need_critic(config))


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_needs_no_more_than_its_data_and_its_model(stage: str, device: str | None) -> None:
    model = [f"{part}.model.path={embedded_models()['alfworld']}" for part in ("actor_rollout_ref", "critic")]
    config = composed(f"+act={stage}", *([f"+act/device={device}"] if device else []), "data.train_files=x", *model)
    validated(config)
    assert config.trainer.save_freq > 0 and config.trainer.test_freq > 0, "it leaves a model, and is validated"


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_an_environments_settings_compose(env: str) -> None:
    """Its group sets what the environment takes, and nothing of the stage."""
    config = composed("+act=action", f"+act/env={env}", "+act/device=cpu")
    settings = ActSettings.from_config(config.data)
    assert settings.episode.max_turns > 0 and settings.history_length == 10
    assert settings.inferable_only is (env == "scienceworld")
    get_env(env).check_settings(settings.episode.env_settings)
    plain = composed("+act=action", "+act/device=cpu")
    config.data.act = plain.data.act
    assert config == plain


def test_every_environment_has_a_group() -> None:
    assert sorted(set(known_envs()) & {"alfworld", "scienceworld", "webshop"}) == ENVIRONMENTS


@pytest.mark.parametrize("theirs", [[], verl_example.OVERRIDES], ids=["defaults", "verl's example"])
def test_mixing_changes_nothing_but_rows_and_reward(theirs: list[str]) -> None:
    agent = "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent"
    plain, mixed = composed(*theirs), composed(*theirs, "+act=mix", agent)
    assert ActSettings.from_config(mixed.data) == ActSettings(default_agent="tool_agent")
    mixed.actor_rollout_ref.rollout.agent.default_agent_loop = "single_turn_agent"
    del mixed.data.act
    for key in ("custom_cls", "return_raw_chat"):
        mixed.data[key] = plain.data[key]
    mixed.reward.custom_reward_function = plain.reward.custom_reward_function
    assert mixed == plain


def test_a_reward_and_a_template_option_are_set_as_the_documents_say(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(data_source, solution_str, ground_truth, extra_info): return 7\n")
    config = composed(
        "+act=mix",
        f"+reward.custom_reward_function.reward_kwargs.other={{path:{tmp_path / 'mine.py'},name:score}}",
        "+data.act.template_options.choose_by_number=true",
    )
    compute_score = get_custom_reward_fn(config)
    assert compute_score is not None
    assert compute_score(data_source="mine", solution_str="", ground_truth="", extra_info={})["score"] == 7
    assert getattr(ActSettings.from_config(config.data).make_template(), "choose_by_number")  # noqa: B009


@pytest.mark.parametrize("stage", [*STAGES, "mix"])
def test_sglang_by_configuration(stage: str) -> None:
    """Composition only: no SGLang is installed here, and none of our code knows the engine's name."""
    config = composed(f"+act={stage}", "actor_rollout_ref.rollout.name=sglang")
    assert config.actor_rollout_ref.rollout.name == "sglang"
    assert isinstance(omega_conf_to_dataclass(config.actor_rollout_ref.rollout), RolloutConfig)


@pytest.mark.parametrize("stage", [*STAGES, "mix"])
def test_megatron_by_configuration(stage: str) -> None:
    """Composition only: no Megatron is installed here."""
    config = composed(f"+act={stage}", "model_engine=megatron")
    assert config.actor_rollout_ref.actor.strategy == "megatron"
    assert ActSettings.from_config(config.data).episode.max_turns > 0
    if stage != "mix":
        assert "hf_model" in config.actor_rollout_ref.actor.checkpoint.save_contents
    plain, ours = (OmegaConf.to_container(one, resolve=False) for one in (composed("model_engine=megatron"), config))
    assert isinstance(plain, dict) and isinstance(ours, dict)
    ours["data"].pop("act")
    assert not list(_unknown(ours, plain, ""))


@pytest.mark.parametrize("stage", [*STAGES, "mix"])
def test_npus_by_configuration(stage: str) -> None:
    """Composition only, with what verl's own example sets for NPUs."""
    npu = ("trainer.device=npu", "actor_rollout_ref.actor.use_torch_compile=false", "trainer.n_gpus_per_node=8")
    config = composed(f"+act={stage}", *npu)
    assert config.trainer.device == "npu"
    assert not unknown_keys(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [None, "cpu"])
def test_supervised_fine_tuning_composes(device: str | None) -> None:
    config = composed("+act=sft", *([f"+act/device={device}_sft"] if device else []), trainer=SFT)
    assert "hf_model" in config.checkpoint.save_contents
    assert config.trainer.device == (device or "cuda")
    assert not unknown_keys(OmegaConf.to_container(config, resolve=False), SFT)  # type: ignore[arg-type]


def test_the_stages_cover_every_group_file() -> None:
    """A new file is added to the lists above, or it is not tested."""
    listed = {
        "act/_base.yaml",
        "act/_rows.yaml",
        "act/mix.yaml",
        "act/device/cpu.yaml",
        "act/device/gpu_sdpa.yaml",
        *(f"act/env/{env}.yaml" for env in ENVIRONMENTS),
        *(f"act/{stage}.yaml" for stage in STAGES),
    }
    assert set(GROUP_FILES) == listed | set(SFT_FILES)


@pytest.mark.parametrize("name", GROUP_FILES)
def test_a_group_file_uses_only_known_keys(name: str) -> None:
    keys = read_group_file(name)
    assert unknown_keys(keys, SFT if name in SFT_FILES else "ppo_trainer") == []
    assert not set(keys) & set(SUPERSEDED)


@pytest.mark.parametrize(
    ("path", "typo"),
    [
        ("trainer.v1.sampler.sync_refill_failed_groups", "trainer.v1.sampler.sync_refill_failed_group"),
        ("actor_rollout_ref.rollout.enable_sleep_mode", "actor_rollout_ref.rollout.enable_sleepmode"),
        ("actor_rollout_ref.actor.fsdp_config.mixed_precision", "actor_rollout_ref.actor.fsdp_config.mixedprecision"),
        ("data.act.history_length", "data.act.history"),
        ("data.act.episode.max_turns", "data.act.episode.max_turn"),
        ("data.act.mix.weights", "data.act.mix.weight"),
        ("ray_kwargs.ray_init.num_gpus", "ray_kwargs.ray_init.gpus"),
        ("reward.custom_reward_function.path", "reward.custom_reward_functions.path"),
    ],
)
def test_the_checker_catches_a_slip(path: str, typo: str) -> None:
    assert unknown_keys(nested({path: 1})) == []
    (found,) = unknown_keys(nested({typo: 1}))
    assert typo.startswith(found)


def test_a_slip_on_the_command_line_is_refused() -> None:
    with pytest.raises(Exception, match="sync_refill_failed_group"):
        composed("+act=action", "trainer.v1.sampler.sync_refill_failed_group=true")
    with pytest.raises(Exception, match="crtic"):
        composed("+act=crtic")


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_recipe_loads_and_its_overrides_compose(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    planned = run_plan(recipe, RunFolder(tmp_path))
    training = [stage for stage in planned if isinstance(stage, TrainingStage)]
    assert [stage.name for stage in training] == recipe.stages
    for stage in training:
        assert check.compose(stage).endswith("overrides")
    for stage in recipe.training.values():
        if stage.data != "dpo":  # its settings refuse unknown keys themselves: tests/test_dpo.py
            keys = nested({key.lstrip("+"): value for key, value in flat(stage.overrides).items()})
            assert unknown_keys(keys, *([SFT] if stage.data in SFT_DATA else [])) == []


def test_verl_itself_finds_the_groups_from_an_empty_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+act=critic", "--cfg", "job"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert shown.returncode == 0, shown.stderr
    config = OmegaConf.create(shown.stdout)
    assert config.data.act.template == "cot"
    assert config.trainer.experiment_name == "critic"


def test_a_reward_that_takes_the_place_of_ours_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """By verl's own trainer, before it does anything; what it then needs is not there."""
    trainer = import_module("verl.trainer.ppo.v1.trainer_base").PPOTrainer
    for own, warned in ((["reward.custom_reward_function.path=my_reward.py"], 1), ([], 0)):
        caplog.clear()
        with suppress(Exception):
            trainer.__init__(SimpleNamespace(), composed("+act=mix", *own))  # the class itself is abstract
        found = [line for line in caplog.messages if "scores the rows of ACT too" in line]
        assert len(found) == warned and all("my_reward.py" in line and "reward_kwargs.other" in line for line in found)


def test_a_reward_model_that_nothing_would_ask_is_refused() -> None:
    """Not by verl itself: that is the gap."""
    trainer = import_module("verl.trainer.ppo.v1.trainer_base").PPOTrainer
    enabled = "reward.reward_model.enable=true"
    validated(composed("+act=critic", enabled, "data.train_files=x"))
    with pytest.raises(ConfigError, match=r"reward\.reward_model\.enable"):
        trainer.__init__(SimpleNamespace(), composed("+act=mix", enabled))
    asks = "+reward.custom_reward_function.reward_kwargs.other={path:mine.py,name:compute_score}"
    for allowed in ([enabled, asks], []):
        with pytest.raises(Exception) as caught:  # what the trainer needs is not there
            trainer.__init__(SimpleNamespace(), composed("+act=mix", *allowed))
        assert not isinstance(caught.value, ConfigError)
