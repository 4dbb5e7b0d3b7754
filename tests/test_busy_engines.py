"""Real engines: sampling resumes to the same bytes, and two replicas evaluate like one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

import pytest
from samples import make_step

from verl_act.chain.recipe import embedded_models
from verl_act.data_prep.alternatives import sample_alternatives as module
from verl_act.data_prep.alternatives.sample_alternatives import Sampler, sample_alternatives
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.evaluate.files import CHOICES, EPISODES, NEXT_ACTIONS
from verl_act.evaluate.run import evaluate
from verl_act.prompts import Message
from verl_act.schema import ALTERNATIVES, TRAJECTORY, read_table, write_rows
from verl_act.settings.data import AlternativesSettings, ExpertSettings, TasksSettings
from verl_act.settings.evaluation import EvaluationSettings
from verl_act.settings.model import Sampling

MODEL = str(embedded_models()["alfworld"])


class Killed(Exception):
    """The end of a run."""


STEPS = [make_step(number) for number in range(10)]


class ScriptedEngine:
    """Replies that depend on their seed alone; the first request of all takes longest."""

    max_num_seqs = 4

    def __init__(self, settings: AlternativesSettings, seed: int = 0) -> None:
        self.requests = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(coroutine)

    async def reply(self, messages: list[Message], sampling: Sampling, seed: int) -> list[str]:
        self.requests += 1
        for _ in range(1 if self.requests > 1 else 100):
            await asyncio.sleep(0)
        return [f"<action>{seed} {number}</action>" for number in range(sampling.n)]


@pytest.mark.parametrize("engine", [ScriptedEngine, pytest.param(None, marks=pytest.mark.slow)], ids=["script", "vllm"])
def test_sampling_streams_over_shards_and_resumes_to_the_same_bytes(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends when two of its three shards are whole."""
    monkeypatch.setattr(module, "SHARD_STATES", 4)
    if engine:
        monkeypatch.setattr(module, "Engine", engine)
    trajectories = tmp_path / "steps.parquet"
    write_rows(trajectories, [step.to_row() for step in STEPS], TRAJECTORY)
    settings = AlternativesSettings(
        model=MODEL, max_model_len=1024, n=2, max_tokens=24, template="compact", trajectories=[trajectories]
    )
    kept: list[int] = []
    sample = Sampler.sample

    async def killed(self: Sampler, shards: Any, keep: Callable[[int, Any], None]) -> None:
        def keep_two(index: int, rows: Any) -> None:
            keep(index, rows)
            kept.append(index)
            if len(kept) == 2:
                raise Killed

        await sample(self, shards, keep_two)

    with monkeypatch.context() as context:
        context.setattr(Sampler, "sample", killed)
        with pytest.raises(Killed):
            sample_alternatives(settings, tmp_path / "out")
    if engine:
        assert 0 not in kept, "the shards after it did not wait for the slow one"
    shards = tmp_path / ".out.shards"
    assert {f"{index:05d}.parquet" for index in kept} <= {path.name for path in shards.glob("*.parquet")}
    (shards / "00001.parquet").unlink(missing_ok=True)
    for out in ("out", "whole"):
        sample_alternatives(settings, tmp_path / out)
    resumed, whole = (tmp_path / out / "alternatives.parquet" for out in ("out", "whole"))
    assert resumed.read_bytes() == whole.read_bytes()
    assert [row["state_id"] for row in read_table(whole, ALTERNATIVES).to_pylist()] == [step.state_id for step in STEPS]


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
        evaluate(settings, tmp_path / str(replicas))
        made.append({name: records(tmp_path / str(replicas), name) for name in (EPISODES, NEXT_ACTIONS, CHOICES)})
    assert all(made[0].values())
    assert made[0] == made[1]
