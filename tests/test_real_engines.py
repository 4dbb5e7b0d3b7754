"""Cross-cutting: real engines evaluate alike however many there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import embedded_models

from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.evaluate.evaluation import evaluate_model
from verl_act.evaluate.records import CHOICES, EPISODES, NEXT_ACTIONS
from verl_act.settings.data import ExpertSettings, TasksSettings
from verl_act.settings.evaluation import EvaluationSettings

MODEL = str(embedded_models()["alfworld"])


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    timed = "env_seconds"
    return [
        {key: value for key, value in json.loads(line).items() if key not in (timed, "log_probability")}
        for line in (folder / name).read_text().splitlines()
    ]


@pytest.mark.slow
def test_two_replicas_evaluate_every_kind_like_one(games: Path, pairs: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {"env": "alfworld", "env_settings": {"data": str(games)}}
    make_tasks(TasksSettings(**where, splits=["valid_seen"]), tmp_path / "tasks")
    collect_expert(ExpertSettings(**where, split="valid_seen", workers=0), tmp_path / "expert")
    made = []
    for replicas in (1, 2):
        settings = EvaluationSettings(
            model=MODEL,
            max_model_len=1024,
            engine_options={"data_parallel_size": replicas, "max_num_seqs": 8},
            tasks=[tmp_path / "tasks" / "tasks.parquet"],
            trajectories=[tmp_path / "expert" / "trajectories.parquet"],
            pairs=[pairs],
            env_settings=where["env_settings"],
            template="compact",
            template_options={"history_length": 4},
            temperature=0,
            max_tokens=16,
            max_turns=8,
            limit=20,
        )
        evaluate_model(settings, tmp_path / str(replicas))
        made.append({name: records(tmp_path / str(replicas), name) for name in (EPISODES, NEXT_ACTIONS, CHOICES)})
    assert all(made[0].values())
    assert made[0] == made[1]
