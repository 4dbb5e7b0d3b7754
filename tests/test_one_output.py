"""verl's workers outside its V1 trainer take one output per episode: what is refused there, and that it still is so."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
import verl  # noqa: F401  (and with it the plugin)
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopManager,
    AgentLoopMetrics,
    AgentLoopOutput,
    AgentLoopWorker,
)
from verl.experimental.fully_async_policy.fully_async_rollouter import FullyAsyncAgentLoopManager

from verl_act.errors import ConfigError

STEPWISE = {"mode": "stepwise", "max_turns": 2}
TRAJECTORY = {"step": 0, "sample_index": 0, "rollout_n": 0, "validate": False}


class TakesLists(AgentLoopWorker):
    """As the worker of verl's V1 trainer, `AgentLoopWorkerTQ`, which only Ray can make."""

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **row: Any) -> Any:
        raise NotImplementedError


def worker_of(kind: type, episode: dict[str, Any]) -> Any:
    """A worker with its configuration, and no engine."""
    worker = object.__new__(kind)
    worker.config = OmegaConf.create({"data": {"act": {"episode": episode}}})
    return worker


def start(worker: Any, agent_name: str = "act_env") -> None:
    asyncio.run(worker._run_agent_loop({}, TRAJECTORY, agent_name=agent_name, trace=False))


def test_stepwise_episodes_are_refused_before_they_are_played() -> None:
    with pytest.raises(ConfigError, match="mode=concat"):
        start(worker_of(AgentLoopWorker, STEPWISE))


@pytest.mark.parametrize(
    ("kind", "episode", "agent_name"),
    [
        (TakesLists, STEPWISE, "act_env"),
        (AgentLoopWorker, {**STEPWISE, "max_turns": 1}, "act_env"),
        (AgentLoopWorker, {**STEPWISE, "mode": "concat"}, "act_env"),
        (AgentLoopWorker, STEPWISE, "single_turn_agent"),
    ],
)
def test_others_are_started(kind: type, episode: dict[str, Any], agent_name: str) -> None:
    with pytest.raises(AttributeError, match="llm_client"):  # what verl reads first to start an agent loop
        start(worker_of(kind, episode), agent_name)


def test_fully_asynchronous_training_has_that_worker() -> None:
    assert issubclass(FullyAsyncAgentLoopManager, AgentLoopManager)
    assert "agent_loop_workers_class" not in inspect.getsource(FullyAsyncAgentLoopManager), "it takes the manager's own"


def test_verl_still_takes_no_list() -> None:
    output = AgentLoopOutput(prompt_ids=[1], response_ids=[2], response_mask=[1], metrics=AgentLoopMetrics())
    worker = worker_of(AgentLoopWorker, STEPWISE)
    with pytest.raises(AttributeError, match="extra_fields"):  # good news if it is not: one_output.py can go
        asyncio.run(worker._agent_loop_postprocess([output], False, raw_prompt=[]))
