"""One episode: a policy replies, the reply is parsed, the environment takes a step, until the episode ends.

Training and evaluation share this loop. It is independent of tokens and verl: a `Policy` turns a context into a reply.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Protocol

from verl_act.envs.base import Observation, StepResult, Task
from verl_act.parse import Malformed, has_thought, match_action, parse_action
from verl_act.schema import Context, Turn

NO_ACTION = "(no readable action)"
"""The action in the history after a malformed reply. The environment takes no step then."""
NOT_UNDERSTOOD = "Nothing happens."
"""The observation after a malformed reply."""


class Session(Protocol):
    """One episode of an environment, wherever it runs."""

    first: Observation

    async def step(self, action: str) -> StepResult: ...

    async def close(self) -> None: ...


class Policy(Protocol):
    """The agent; one instance per episode."""

    async def reply(self, context: Context) -> str | None:
        """The model's reply, or None if its token budget is used up."""
        ...


class End(StrEnum):
    """Why an episode ended."""

    GOAL = "goal"
    OVER = "over"
    """The environment ended it without success: a wrong purchase, a task failed for good, or its own step limit."""
    STEP_LIMIT = "step_limit"
    """`max_turns`."""
    TOKEN_BUDGET = "token_budget"
    ERROR = "error"
    """The environment failed. `play` raises an error; an evaluation records it and leaves it out of its metrics."""


@dataclass(frozen=True, slots=True)
class EpisodeTurn:
    """One turn: the context, the reply, the parsed action and its result."""

    context: Context
    reply: str
    action: str | None
    malformed: Malformed | None
    admissible: bool
    reward: float


@dataclass(slots=True)
class Episode:
    """A finished episode and its metrics."""

    task: Task
    turns: list[EpisodeTurn] = field(default_factory=list)
    end: End = End.STEP_LIMIT
    env_seconds: float = 0.0

    @property
    def success(self) -> bool:
        return self.end is End.GOAL

    @property
    def score(self) -> float:
        """The sum of the turns' rewards, in the environment's unit."""
        return sum(turn.reward for turn in self.turns)

    def metrics(self) -> dict[str, float]:
        """Metrics for a log: shares are of all turns, `longest_failed_repeat` counts turns, `env_seconds` seconds.

        A failed repeat is one inadmissible action taken several times in a row (the loops of paper section 5), or one
        malformed reply repeated word for word.
        """
        count = max(1, len(self.turns))
        failed = [turn.action for turn in self.turns if turn.action is not None and not turn.admissible]
        return {
            "success": float(self.success),
            "steps": float(len(self.turns)),
            "inadmissible_share": len(failed) / count,
            "malformed_share": sum(turn.malformed is not None for turn in self.turns) / count,
            "thought_share": sum(has_thought(turn.reply) for turn in self.turns) / count,
            "longest_failed_repeat": float(longest_failed_repeat(self.turns)),
            "token_budget": float(self.end is End.TOKEN_BUDGET),
            "env_seconds": self.env_seconds,
        }


def longest_failed_repeat(turns: Sequence[EpisodeTurn]) -> int:
    """The longest run of one failed action; 0 if every action was admissible."""
    return max(failed_repeats([(turn.admissible, turn.action, turn.reply) for turn in turns]), default=0)


def failed_repeats(turns: Iterable[tuple[bool, str | None, str]]) -> list[int]:
    """For every turn (admissible, action, reply), the length of its run of one failed action; 0 if admissible.

    A malformed reply (action None) only extends a run of the same reply.
    """
    failed = [None if admissible else (action, "" if action else reply) for admissible, action, reply in turns]
    runs = ((failure, len(list(run))) for failure, run in groupby(failed))
    return [length if failure else 0 for failure, length in runs for _ in range(length)]


async def play(task: Task, session: Session, policy: Policy, max_turns: int) -> Episode:
    """Play one episode. Raises the environment's errors (`EnvError`); the caller closes the session."""
    episode = Episode(task)
    first = session.first
    context = Context(first.goal, (), first.observation, first.admissible_actions)
    for _ in range(max_turns):
        reply = await policy.reply(context)
        if reply is None:
            episode.end = End.TOKEN_BUDGET
            break
        parsed = parse_action(reply)
        if parsed.action is None:
            result = StepResult(NOT_UNDERSTOOD, context.admissible_actions, 0.0, False, False, False)
        else:
            started = time.perf_counter()
            # Environments match exactly; case and spacing of a reply are ignored, as in the rewards.
            action = match_action(parsed.action, context.admissible_actions) or parsed.action
            result = await session.step(action)
            episode.env_seconds += time.perf_counter() - started
        episode.turns.append(
            EpisodeTurn(context, reply, parsed.action, parsed.malformed, result.admissible, result.reward)
        )
        turn = Turn(context.observation, parsed.action or NO_ACTION)
        context = Context(context.goal, (*context.history, turn), result.observation, result.admissible_actions)
        if result.done:
            episode.end = End.GOAL if result.success else End.OVER
            break
    return episode
