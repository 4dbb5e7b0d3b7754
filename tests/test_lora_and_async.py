"""Cross-cutting: verl's LoRA and its asynchronous trainers, for two steps each on a CPU; and what cannot work there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from samples import embedded_models, make_pair, make_step
from verl_runs import ACT, arguments, check_steps, run

from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.schema import PAIR, TRAJECTORY, write_rows
from verl_act.settings.data import TasksSettings
from verl_act.upstream_gaps.merge_lora import merge_lora

LORA = {
    "actor_rollout_ref.model.lora_rank": 8,
    "actor_rollout_ref.model.lora_alpha": 16,
    "actor_rollout_ref.actor.optim.lr": 1e-3,
}


def train(out: Path, stage: str, files: object, **settings: object) -> dict[int, dict[str, float]]:
    """Two steps of a stage."""
    own = {
        "data.train_files": files,
        "data.val_files": files,
        "data.val_max_samples": 4,
        "actor_rollout_ref.model.path": embedded_models()["alfworld"],
    }
    command = [sys.executable, "-m", "verl.trainer.main_ppo", f"+act={stage}"]
    return run([*command, *arguments(out, **{**ACT, **own, **settings})], out)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_lora(tmp_path: Path) -> None:
    """On the rows of both stages."""
    from transformers import AutoModelForCausalLM

    pairs, steps = tmp_path / "pairs.parquet", tmp_path / "steps.parquet"
    write_rows(pairs, [make_pair(number).to_row() for number in range(16)], PAIR)
    write_rows(steps, [make_step(number).to_row() for number in range(16)], TRAJECTORY)
    both = {"data.act.mix.weights": "[1,1]", "data.shuffle": False}
    metrics = train(tmp_path, "critic", f"[{pairs},{steps}]", **both, **LORA)
    check_steps(metrics)
    assert {"train/act/alfworld/choice/acc/mean", "train/act/alfworld/action/acc/mean"} <= metrics[2].keys()
    actor = tmp_path / "checkpoints" / "global_step_2" / "actor"
    assert merge_lora(actor)
    before = AutoModelForCausalLM.from_pretrained(embedded_models()["alfworld"]).state_dict()
    after = AutoModelForCausalLM.from_pretrained(actor / "huggingface").state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, weight in before.items() if not weight.equal(after[name].to(weight.dtype))}
    assert changed and all(".self_attn." in name or ".mlp." in name for name in changed), "only what has adapters"


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_choices_and_live_episodes_while_another_batch_trains(games: Path, pairs: Path, tmp_path: Path) -> None:
    make_tasks(TasksSettings(env="alfworld", splits=["train"], env_settings={"data": str(games)}), tmp_path / "tasks")
    tasks = tmp_path / "tasks" / "tasks.parquet"
    episodes = {
        "data.val_files": tasks,
        "trainer.v1.trainer_mode": "colocate_async",
        "data.act.mix.weights": "[1,1]",
        "data.shuffle": False,
        "data.act.episode.mode": "stepwise",
        "data.act.episode.max_turns": 2,
        "+data.act.episode.env_settings.data": games,
    }
    metrics = train(tmp_path, "action", f"[{pairs},{tasks}]", **episodes)
    check_steps(metrics)
    # A step trains the four prompts that are done first, of three batches with two of each kind: it may be one kind
    # alone, but of the eight of both steps no more than six.
    logged = {**metrics[1], **metrics[2]}
    assert 0 <= logged["train/act/alfworld/choice/acc/mean"] <= 1
    assert 1 <= logged["train/act/alfworld/episode/steps/mean"] <= 2
    assert any(name.startswith("val-core/act/alfworld/episode") for name in metrics[2]), "validation plays too"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("trainer.v1.trainer_mode=separate_async", "n_gpus_per_node must be > 0|nnodes must be > 0"),
        ("actor_rollout_ref.rollout.checkpoint_engine.backend=naive", "please use nccl/nixl/mooncake"),
    ],
)
def test_separate_trainers_and_rollouts_need_accelerators(setting: str, reason: str) -> None:
    """verl moves weights between them with NCCL, NIXL or Mooncake alone; on a CPU it says so before anything starts."""
    from verl.trainer.ppo.v1.trainer_base import get_trainer_cls

    GlobalHydra.instance().clear()
    sizes = ["data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    if "backend" in setting:
        sizes += ["actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=1"]
    else:
        sizes += ["actor_rollout_ref.rollout.nnodes=0"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["+act=critic", "+act/device=cpu", *sizes, setting])
    with pytest.raises(AssertionError, match=reason):
        get_trainer_cls("separate_async")(config)
