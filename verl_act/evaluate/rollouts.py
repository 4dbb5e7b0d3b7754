"""Roll out tasks with a model, and evaluate its next actions and reasoning.

Every function returns one record per item, in the order of the items. Items already in `journal` are not run again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from verl_act.engine import Engine, Reply, request_seed
from verl_act.envs.base import Task
from verl_act.envs.pool import EnvPool
from verl_act.envs.registry import is_admissible
from verl_act.errors import DataError, EnvError
from verl_act.evaluate.endpoint import Endpoint
from verl_act.evaluate.reasoning import Question, is_right
from verl_act.journal import Journal, Record, all_records
from verl_act.parse import has_thought, match_action, parse_action, verb
from verl_act.prompts import Template
from verl_act.rollout.episode import End, Episode, play
from verl_act.schema import Context, Pair, Step
from verl_act.settings.episodes import Mode
from verl_act.settings.model import Sampling

if TYPE_CHECKING:
    from verl_act.rollout.sequence import GrowingSequence

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PolicyUnderTest:
    """A model with the prompts and sampling of its evaluation.

    `mode`: how the turns of an episode are prompted. `at_once`: items in progress at the same time, whatever their kind
    (an episode counts until it ends); `Engine.max_num_seqs` keeps an engine full without a queue. `sample` counts the
    samplings of the same items; each has its own noise.
    """

    engine: Engine | Endpoint
    template: Template
    sampling: Sampling
    seed: int = 0
    mode: Mode = Mode.STEPWISE
    at_once: int = 256
    sample: int = 0
    slots: asyncio.Semaphore | None = None
    """Shared by all kinds of items; made from `at_once`."""

    def __post_init__(self) -> None:
        if self.slots is None:
            object.__setattr__(self, "slots", asyncio.Semaphore(self.at_once))

    async def answer(self, messages: list[dict[str, str]], item: str, opening: str = "") -> str:
        """The reply to `messages`, which begins with `opening`. `item` names the request; with `seed` it determines
        the sampling seed."""
        start = {"opening": opening} if opening else {}
        (reply,) = await self.engine.reply(messages, self.sampling, seed=self.request_seed(item), **start)
        return reply

    async def scored_answer(self, messages: list[dict[str, str]], item: str) -> Reply:
        """Like `answer`, with the reply's log-probability."""
        (reply,) = await self.engine.scored_reply(messages, self.sampling, seed=self.request_seed(item))
        return reply

    def request_seed(self, item: str) -> int:
        """The sampling seed of the request named `item`."""
        return request_seed(self.seed, f"{item}, sample {self.sample}" if self.sample else item)


class _EpisodePolicy:
    """The policy of one episode: a fresh prompt for every turn or, in mode `concat`, one growing sequence."""

    def __init__(self, policy: PolicyUnderTest, task: Task) -> None:
        self._policy, self._task, self._turn = policy, task, 0
        self._sequence: GrowingSequence | None = None

    async def reply(self, context: Context) -> str | None:
        self._turn += 1
        item = f"episode {self._task.split}/{self._task.task_id}#{self._turn}"
        if self._policy.mode is Mode.CONCAT:
            return await self._next_reply(context, item)
        return await self._policy.answer(self._policy.template.action_messages(context), item)

    async def _next_reply(self, context: Context, item: str) -> str | None:
        """The reply to the sequence with this state; None if the model's context is full."""
        # The settings refuse one sequence with an endpoint.
        engine, template = cast(Engine, self._policy.engine), self._policy.template
        if self._sequence is None:
            self._sequence = engine.sequence(template.action_messages(context))
        else:
            room = engine.max_model_len - len(self._sequence.sample.prompt_ids)
            content = template.followup(context.observation, context.admissible_actions)
            if not self._sequence.observe(content, room):
                return None
        return await engine.next_reply(self._sequence, self._policy.sampling, self._policy.request_seed(item))


def require_one_environment(items: Iterable[Task | Step | Pair]) -> None:
    """Raise `DataError` if the items come from several environments. Records do not name the environment, so splits of
    the same name would be mixed.
    """
    if len(envs := sorted({item.env for item in items})) > 1:
        raise DataError(
            f"the tasks, states and pairs come from {len(envs)} environments ({', '.join(envs)}), whose metrics would "
            "be mixed. Evaluate them one by one, each into a separate folder."
        )


async def rollout_tasks(
    policy: PolicyUnderTest,
    tasks: Sequence[Task],
    pool: EnvPool,
    max_turns: int,
    journal: Journal | None = None,
    at_once: int | None = None,
) -> list[Record]:
    """Play every task once in `pool`, that of their environment; records include the transcript (`goal`, `turns`).

    `at_once` limits the episodes in progress, besides the policy's own limit. An episode whose environment fails is
    retried once; if it fails again, it ends as `End.ERROR` and its record has the `error`. Raises `EnvError` if every
    episode fails, as with wrong settings.
    """

    async def played(task: Task) -> Episode:
        session = await pool.open(task)
        try:
            return await play(task, session, _EpisodePolicy(policy, task), max_turns)
        finally:
            await session.close()

    async def one(task: Task) -> Record:
        error = {}
        try:
            episode = await played(task)
        except EnvError as failure:
            logger.warning("retrying %s: %s", task, failure)
            try:
                episode = await played(task)
            except EnvError as again:
                episode, error = Episode(task, end=End.ERROR), {"error": str(again)}
        return {
            "task_id": task.task_id,
            "task_type": task.task_type,
            "split": task.split,
            "end": str(episode.end),
            "score": episode.score,
            **episode.metrics(),
            **error,
            **_transcript(episode),
        }

    records = await answer_all(policy, one, tasks, "episodes", journal, at_once)
    if records and all("error" in record for record in records):
        raise EnvError(f"none of {len(records)} episodes could be played; the first: {records[0]['error']}")
    return records


def _transcript(episode: Episode) -> Record:
    """The goal, and each turn's observation, admissible actions, reply and action."""
    return {
        "goal": episode.turns[0].context.goal if episode.turns else "",
        "turns": [
            {
                "observation": turn.context.observation,
                "admissible_actions": list(turn.context.admissible_actions),
                "reply": turn.reply,
                "action": turn.action,
                "malformed": turn.malformed,
                "admissible": turn.admissible,
            }
            for turn in episode.turns
        ],
    }


async def evaluate_next_actions(
    policy: PolicyUnderTest, steps: Sequence[Step], journal: Journal | None = None
) -> list[Record]:
    """Ask for the next action at every step; right if it is the expert's."""

    async def one(step: Step) -> Record:
        messages = policy.template.action_messages(step.context)
        reply = await policy.answer(messages, f"next action {step.state_id}")
        parsed = parse_action(reply)
        action = parsed.action or ""
        return {
            "state_id": step.state_id,
            "task_id": step.task_id,
            "split": step.split,
            "inferable": step.inferable,
            "verb": verb(step.action),
            "reply": reply,
            "thought": has_thought(reply),
            "well_formed": parsed.malformed is None,
            "admissible": is_admissible(step.env, action, step.context.admissible_actions),
            "right": match_action(action, [step.action]) is not None,
        }

    return await answer_all(policy, one, steps, "next actions", journal)


async def evaluate_reasoning(
    policy: PolicyUnderTest, questions: Sequence[Question], journal: Journal | None = None
) -> list[Record]:
    """Ask general reasoning questions and verify the answers."""

    async def one(question: Question) -> Record:
        reply = await policy.answer(question.messages, f"question {question.split}/{question.item}")
        return {
            "item": question.item,
            "split": question.split,
            "gold": question.gold,
            "reply": reply,
            "right": is_right(question, reply),
        }

    return await answer_all(policy, one, questions, "reasoning", journal)


async def answer_all(
    policy: PolicyUnderTest,
    evaluate_item: Callable[[Item], Awaitable[Record]],
    items: Sequence[Item],
    what: str,
    journal: Journal | None,
    at_once: int | None = None,
) -> list[Record]:
    """The records of all items, in their order, with their `sample`; those in `journal`, under the name `what`, are not
    computed again.

    `at_once` limits the items in progress, besides the policy's own limit, which holds for all kinds together.
    """
    slots = policy.slots
    assert slots is not None

    async def evaluate(item: Item) -> Record:
        async with slots:
            return {**await evaluate_item(item), "sample": policy.sample}

    what = f"{what}, sample {policy.sample}" if policy.sample else what
    # A kind has no more items in the queue of the slots, so that no other kind waits until it is done.
    most = min(policy.at_once, at_once or policy.at_once)
    return await all_records(evaluate, dict(enumerate(items)), what, journal, most)
