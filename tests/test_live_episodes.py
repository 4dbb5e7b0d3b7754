"""Cross-cutting: whole episodes of two environments in one run of verl's GRPO trainer, each as one growing sequence.

The run opens nothing to the network but what docs/gaps.md lists.

What differs by mode is tested in test_agent_loop.py; a run turn by turn is in test_mix_recipes.py.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import fmean

import pytest
from processes import check_loopback, new_servers
from samples import embedded_models
from verl_runs import ACT, arguments, check_steps, run

from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.evaluate.evaluation import evaluate_model
from verl_act.evaluate.records import EPISODES
from verl_act.settings.data import TasksSettings
from verl_act.settings.episodes import Mode
from verl_act.settings.evaluation import EvaluationSettings

TOKENS_PER_TURN = 24


def check_evaluation(validated: dict[str, float], folder: Path) -> None:
    """`evaluate` finds the initial model as good as verl's validation before the first step."""
    tasks = folder / "test" / "webshop" / "tasks.parquet"
    evaluate_model(
        EvaluationSettings(
            name="initial",
            tasks=[tasks],
            max_turns=2,
            mode=Mode.CONCAT,
            template="compact",
            model=str(embedded_models()["webshop"]),
            max_model_len=2048,
            temperature=0,
            max_tokens=TOKENS_PER_TURN,
        ),
        folder / "evaluation",
    )
    records = [json.loads(line) for line in (folder / "evaluation" / EPISODES).read_text().splitlines()]
    for name in ("success", "steps", "inadmissible_share", "malformed_share", "longest_failed_repeat"):
        (found,) = (value for key, value in validated.items() if key.endswith(f"webshop/episode/test/{name}/mean@1"))
        assert found == pytest.approx(fmean(record[name] for record in records)), name


@pytest.mark.slow
@pytest.mark.nightly
def test_webshop_and_scienceworld_as_one_sequence(tmp_path: Path) -> None:
    files = {}
    for split in ("train", "test"):
        for env in ("webshop", "scienceworld"):
            make_tasks(TasksSettings(env=env, splits=[split], limit=4), tmp_path / split / env)
        files[split] = f"[{tmp_path}/{split}/webshop/tasks.parquet,{tmp_path}/{split}/scienceworld/tasks.parquet]"
    settings = {
        "data.train_files": files["train"],
        "data.val_files": files["test"],
        "data.act.mix.weights": "[1,1]",
        "data.shuffle": False,
        "data.max_response_length": 640,
        "data.max_prompt_length": 1400,
        "actor_rollout_ref.rollout.max_model_len": 2048,
        "actor_rollout_ref.model.path": embedded_models()["webshop"],
        "trainer.val_before_train": True,
        "data.act.episode.mode": "concat",
        "data.act.episode.max_turns": 2,
        "data.act.episode.max_tokens_per_turn": TOKENS_PER_TURN,
    }
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+act=action"]
    with new_servers() as servers:
        metrics = run([*command, *arguments(tmp_path, **{**ACT, **settings})], tmp_path)
    before = metrics.pop(0)
    check_evaluation(before, tmp_path)
    check_steps(metrics)
    check_loopback(servers)
    for step in (1, 2):
        for env in ("webshop", "scienceworld"):
            for name in ("success", "steps", "malformed_share", "longest_failed_repeat", "adm", "fmt"):
                assert math.isfinite(metrics[step][f"train/act/{env}/episode/{name}/mean"]), (step, env, name)
            assert 1 <= metrics[step][f"train/act/{env}/episode/steps/mean"] <= 2
        assert metrics[step]["response_length/max"] > 2 * TOKENS_PER_TURN, "an observation stands between the replies"
    for env in ("webshop", "scienceworld"):
        assert f"val-core/act/{env}/episode/test/acc/mean@1" in metrics[2]
