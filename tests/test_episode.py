"""The episode loop on a real environment with scripted policies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.base import Observation, StepResult, Task
from verl_act.envs.registry import get_env
from verl_act.parse import Malformed
from verl_act.rollout.episode import NO_ACTION, NOT_UNDERSTOOD, End, Episode, failed_repeats, play
from verl_act.schema import Context


class LocalSession:
    """An episode in this process."""

    first: Observation

    def __init__(self, environment: AlfworldEnvironment, task: Task) -> None:
        self.environment = environment
        self.first = environment.reset(task)
        self.actions: list[str] = []

    async def step(self, action: str) -> StepResult:
        self.actions.append(action)
        return self.environment.step(action)

    async def close(self) -> None:
        self.environment.close()


class ScriptedPolicy:
    """Gives its replies in turn (None: no tokens are left), then says nothing readable; remembers what it was shown."""

    def __init__(self, replies: Sequence[str | None]) -> None:
        self.replies = list(replies)
        self.shown: list[Context] = []

    async def reply(self, context: Context) -> str | None:
        self.shown.append(context)
        return self.replies.pop(0) if self.replies else "hm"


@pytest.fixture
def session(games: Path) -> Iterator[LocalSession]:
    session = LocalSession(AlfworldEnvironment(data=games), task_of(games))
    yield session
    asyncio.run(session.close())


def task_of(games: Path) -> Task:
    return get_env("alfworld").tasks("train", data=str(games))[1]


def plan_of(session: LocalSession) -> list[str]:
    plan = session.environment.plan()
    assert plan
    return plan


def answer(action: str) -> str:
    return f"<think>it seems right</think><action>{action}</action>"


def played(session: LocalSession, policy: ScriptedPolicy, max_turns: int = 50) -> Episode:
    task = Task("alfworld", "train", "a game", "a type")
    return asyncio.run(play(task, session, policy, max_turns))


def test_the_experts_plan_wins(session: LocalSession) -> None:
    plan = plan_of(session)
    episode = played(session, ScriptedPolicy(list(map(answer, plan))))
    assert episode.end is End.GOAL and episode.success
    assert session.actions == [turn.action for turn in episode.turns] == plan
    assert [turn.reward for turn in episode.turns] == [0.0] * (len(plan) - 1) + [1.0]
    assert episode.score == 1.0
    figures = episode.metrics()
    assert figures.pop("env_seconds") > 0
    assert figures == {
        "success": 1.0,
        "steps": float(len(plan)),
        "inadmissible_share": 0.0,
        "malformed_share": 0.0,
        "thought_share": 1.0,
        "longest_failed_repeat": 0.0,
        "token_budget": 0.0,
    }


def test_the_policy_sees_the_whole_history(session: LocalSession) -> None:
    plan = plan_of(session)
    policy = ScriptedPolicy(list(map(answer, plan)))
    episode = played(session, policy)
    assert [turn.context for turn in episode.turns] == policy.shown
    for number, context in enumerate(policy.shown):
        assert context.goal == session.first.goal
        assert [turn.action for turn in context.history] == plan[:number]
        assert [turn.observation for turn in context.history] == [shown.observation for shown in policy.shown[:number]]
    assert policy.shown[0].admissible_actions == session.first.admissible_actions


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("go on", Malformed.NO_TAG),
        ("<action>look", Malformed.UNCLOSED),
        ("<action> </action>", Malformed.EMPTY),
        ("<action>look</action><action>inventory</action>", Malformed.SEVERAL),
        ("<think><action>look</action>", Malformed.UNCLOSED_THINK),
    ],
)
def test_a_malformed_reply_is_counted_and_does_not_move_the_environment(
    session: LocalSession, reply: str, why: Malformed
) -> None:
    plan = plan_of(session)
    policy = ScriptedPolicy([reply, *map(answer, plan)])
    episode = played(session, policy)
    assert session.actions == plan
    assert episode.success
    first, second = policy.shown[:2]
    assert (episode.turns[0].malformed, episode.turns[0].action) == (why, None)
    assert not episode.turns[0].admissible
    assert second.admissible_actions == first.admissible_actions
    assert second.observation == NOT_UNDERSTOOD
    assert second.history[-1].action == NO_ACTION
    assert episode.metrics()["malformed_share"] == pytest.approx(1 / (len(plan) + 1))
    assert episode.metrics()["inadmissible_share"] == 0.0


def test_a_failed_action_taken_again_and_again(session: LocalSession) -> None:
    replies = [answer(action) for action in ("fly", "fly", "look", "fly", "fly", "fly", "sing", "inventory")]
    episode = played(session, ScriptedPolicy(replies), max_turns=len(replies))
    figures = episode.metrics()
    assert figures["longest_failed_repeat"] == 3
    assert figures["inadmissible_share"] == pytest.approx(6 / 8)
    assert [turn.admissible for turn in episode.turns] == [False, False, True, False, False, False, False, True]


def test_malformed_replies_that_differ_are_no_repeat(session: LocalSession) -> None:
    """Nor do they stand between what is."""
    replies = ["hm", "go on", "<action>look", "", answer("fly"), "fly", answer("fly"), answer("fly")]
    episode = played(session, ScriptedPolicy(replies), max_turns=len(replies))
    assert episode.metrics()["longest_failed_repeat"] == 2
    turns = [(turn.admissible, turn.action, turn.reply) for turn in episode.turns]
    assert failed_repeats([(True, "look", answer("look")), *turns]) == [0, 1, 1, 1, 1, 1, 1, 2, 2]


def test_one_malformed_reply_in_a_row_is_a_failed_repeat(session: LocalSession) -> None:
    episode = played(session, ScriptedPolicy([]), max_turns=4)
    assert episode.metrics()["longest_failed_repeat"] == 4
    assert episode.metrics()["malformed_share"] == 1.0
    assert session.actions == []


def test_case_and_spacing_are_forgiven(session: LocalSession) -> None:
    plan = plan_of(session)
    episode = played(session, ScriptedPolicy([answer(f" {action.upper()}  ") for action in plan]))
    assert episode.success
    assert session.actions == plan


def test_turns_run_out(session: LocalSession) -> None:
    plan = plan_of(session)
    episode = played(session, ScriptedPolicy(list(map(answer, plan))), max_turns=len(plan) - 1)
    assert episode.end is End.STEP_LIMIT and not episode.success
    assert len(episode.turns) == len(plan) - 1


def test_the_environments_own_limit_is_no_success(games: Path) -> None:
    session = LocalSession(AlfworldEnvironment(data=games, max_steps=3), task_of(games))
    episode = played(session, ScriptedPolicy([answer("look")] * 9))
    assert episode.end is End.OVER and not episode.success
    assert len(episode.turns) == 3


def test_tokens_run_out(session: LocalSession) -> None:
    plan = plan_of(session)
    episode = played(session, ScriptedPolicy([answer(plan[0]), None]))
    assert episode.end is End.TOKEN_BUDGET and not episode.success
    assert len(episode.turns) == 1
    empty = played(session, ScriptedPolicy([None]))
    assert empty.end is End.TOKEN_BUDGET
    assert empty.metrics()["steps"] == 0.0
