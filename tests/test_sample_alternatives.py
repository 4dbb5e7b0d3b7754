"""Sampling of alternatives: at which states, resumed to the same bytes, and stopped where no reply has an action."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

import pytest
from samples import embedded_models, make_step

from verl_act.data_prep.alternatives import sample_alternatives as module
from verl_act.data_prep.alternatives.sample_alternatives import Sampler, sample_alternatives, sampled_trajectories
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.errors import DataError
from verl_act.manifest import read_manifest
from verl_act.prompts import Message
from verl_act.schema import (
    ALTERNATIVES,
    TRAJECTORY,
    Step,
    read_pairs,
    read_steps,
    read_table,
    write_rows,
)
from verl_act.settings.data import AlternativesSettings, PairsSettings
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
    (saved,) = (tmp_path / ".out.journal").iterdir()
    assert set(kept) <= {json.loads(line)["number"] for line in saved.read_bytes().splitlines()}
    for out in ("out", "whole"):
        sample_alternatives(settings, tmp_path / out)
    resumed, whole = (tmp_path / out / "alternatives.parquet" for out in ("out", "whole"))
    assert resumed.read_bytes() == whole.read_bytes()
    assert [row["state_id"] for row in read_table(whole, ALTERNATIVES).to_pylist()] == [step.state_id for step in STEPS]


def test_sampling_with_a_limit_is_at_the_states_that_pairs_with_a_limit_are_of(
    games: Path, trajectories: Path, tmp_path: Path
) -> None:
    steps = read_steps([trajectories])
    sampled = sampled_trajectories(steps, 20, seed=3)
    names = {step.trajectory_id for step in sampled}
    assert sampled == [step for step in steps if step.trajectory_id in names], "whole trajectories, in their order"
    shortest = min(Counter(step.trajectory_id for step in sampled).values())
    assert len(sampled) >= 20 and len(sampled) - shortest < len(steps) and len(names) < 12
    assert sampled_trajectories(steps, None, seed=3) == steps
    assert {step.trajectory_id for step in sampled_trajectories(steps, 20, seed=4)} != names
    settings = {"env_settings": {"data": str(games)}, "source": "admissible", "seed": 3, "limit": 10}
    build_pairs(PairsSettings(trajectories=[trajectories], workers=0, **settings), tmp_path / "pairs")
    states = {step.state_id for step in sampled}
    assert {pair.state_id for pair in read_pairs([tmp_path / "pairs" / "pairs.parquet"])} <= states


class Rambles(ScriptedEngine):
    """Its replies have no action."""

    async def reply(self, messages: list[Message], sampling: Sampling, seed: int) -> list[str]:
        return ["<think>I", ""]


def test_sampling_without_an_action_stops(
    trajectories: Path, steps: list[Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again, where the first shards are there already."""
    out = tmp_path / "alternatives"
    asked = {"model": MODEL, "trajectories": [trajectories], "n": 2}
    for engine in (Rambles, None):
        monkeypatch.setattr(module, "Engine", engine)
        with pytest.raises(DataError, match=r"unclosed_think \d+.* --allow-degenerate"):
            sample_alternatives(AlternativesSettings(**asked), out)
        assert not out.exists()
    monkeypatch.setattr(module, "Engine", Rambles)
    sample_alternatives(AlternativesSettings(allow_degenerate=True, **asked), out)
    assert read_manifest(out).counts["states"] == len(steps)
