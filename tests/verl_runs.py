"""Real verl runs of two steps on a CPU, with the embedded model."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from samples import embedded_models

SMALL = {
    "actor_rollout_ref.model.use_remove_padding": False,
    "actor_rollout_ref.model.enable_gradient_checkpointing": False,
    "actor_rollout_ref.actor.use_dynamic_bsz": False,
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 8,
    "actor_rollout_ref.rollout.n": 2,
    "actor_rollout_ref.rollout.max_model_len": 1024,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 8,
    "data.train_batch_size": 4,
    "data.max_prompt_length": 960,
    "data.max_response_length": 16,
    "trainer.n_gpus_per_node": 1,
    "trainer.total_training_steps": 2,
    "trainer.save_freq": 2,
    "trainer.test_freq": 2,
    "trainer.val_before_train": False,
    "trainer.logger": '["console","file"]',
}
ACT = {"data.act.template": "compact"}
"""The embedded model knows this template."""


def arguments(out: Path, **settings: Any) -> list[str]:
    """Hydra overrides for a small run on a CPU."""
    folders = {"trainer.default_local_dir": out / "checkpoints", "hydra.run.dir": out / "hydra"}
    return ["+act/device=cpu", *(f"{key}={value}" for key, value in {**SMALL, **folders, **settings}.items())]


def run(command: list[str], out: Path, **variables: str) -> dict[int, dict[str, float]]:
    """Run to the end; step -> what verl logged."""
    metrics = out / "metrics.jsonl"
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "MODEL": str(embedded_models()["alfworld"]),
        "VERL_FILE_LOGGER_PATH": str(metrics),
        **variables,
    }
    finished = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-4000:]
    return {entry["step"]: entry["data"] for entry in map(json.loads, metrics.read_text().splitlines())}


def check_steps(metrics: dict[int, dict[str, float]]) -> None:
    assert sorted(metrics) == [1, 2]
    assert all(math.isfinite(metrics[step][name]) for step in (1, 2) for name in ("actor/pg_loss", "actor/grad_norm"))
