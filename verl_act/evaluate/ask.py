"""Put questions to a model: play tasks, ask for next actions, ask for choices.

One flat record an item, in a fixed order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from verl_act.data.order import arranged, expert_positions
from verl_act.engine import Engine, Reply, Sampling, request_seed
from verl_act.envs.base import Task
from verl_act.envs.pool import EnvPool
from verl_act.errors import EnvError
from verl_act.evaluate.reasoning import Question, is_right
from verl_act.parse import match_action, parse_action, parse_choice, verb
from verl_act.prompts import Template
from verl_act.rollout.episode import End, Episode, play
from verl_act.schema import Context, Pair, Step

CONCURRENT_EPISODES = 64

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Examinee:
    """A model with the prompts and the sampling it is examined with."""

    engine: Engine
    template: Template
    sampling: Sampling
    seed: int = 0

    async def answer(self, messages: list[dict[str, str]], item: str) -> str:
        """The reply; `item` names the question and decides, with the seed, what is drawn for it."""
        (reply,) = await self.engine.reply(messages, self.sampling, seed=request_seed(self.seed, item))
        return reply

    async def scored_answer(self, messages: list[dict[str, str]], item: str) -> Reply:
        """As `answer`, with the reply's log-probability."""
        (reply,) = await self.engine.scored_reply(messages, self.sampling, seed=request_seed(self.seed, item))
        return reply


class _Player:
    """The policy of one episode: a fresh prompt each turn."""

    def __init__(self, examinee: Examinee, task: Task) -> None:
        self.examinee = examinee
        self.task = task
        self.turn = 0

    async def reply(self, context: Context) -> str:
        self.turn += 1
        messages = self.examinee.template.action_messages(context)
        return await self.examinee.answer(messages, f"episode {self.task.split}/{self.task.task_id}#{self.turn}")


async def play_tasks(
    examinee: Examinee, tasks: Sequence[Task], pools: Mapping[str, EnvPool], max_turns: int
) -> list[tuple[dict[str, Any], Episode]]:
    """Every task once: (record, episode) in the order of `tasks`. No episode waits for another.

    `pools`: environment -> its pool. An episode whose environment fails ends as `End.ERROR`, its record with the
    `error`. Raises `EnvError` where every episode does, as with wrong settings.
    """
    places = asyncio.Semaphore(CONCURRENT_EPISODES)

    async def played(task: Task) -> Episode:
        session = await pools[task.env].open(task)
        try:
            return await play(task, session, _Player(examinee, task), max_turns)
        finally:
            await session.close()

    async def one(task: Task) -> tuple[dict[str, Any], Episode]:
        error = {}
        async with places:
            try:
                episode = await played(task)
            except EnvError as failure:
                episode, error = Episode(task, end=End.ERROR), {"error": str(failure)}
        record = {
            "task_id": task.task_id,
            "task_type": task.task_type,
            "split": task.split,
            "end": str(episode.end),
            "score": episode.score,
            **episode.metrics(),
            **error,
        }
        return record, episode

    found = await _all(one, tasks, "episodes")
    if found and all(episode.end is End.ERROR for _, episode in found):
        raise EnvError(f"not one of {len(found)} episodes could be played; the first: {found[0][0]['error']}")
    return found


async def ask_next_actions(examinee: Examinee, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The expert's action wanted at every step."""

    async def one(step: Step) -> dict[str, Any]:
        messages = examinee.template.action_messages(step.context)
        reply = await examinee.answer(messages, f"next action {step.state_id}")
        parsed = parse_action(reply)
        action = parsed.action or ""
        return {
            "state_id": step.state_id,
            "task_id": step.task_id,
            "split": step.split,
            "inferable": step.inferable,
            "verb": verb(step.action),
            "reply": reply,
            "well_formed": parsed.malformed is None,
            "admissible": match_action(action, step.context.admissible_actions) is not None,
            "right": match_action(action, [step.action]) is not None,
        }

    return await _all(one, steps, "next actions")


async def ask_choices(examinee: Examinee, pairs: Sequence[Pair], order_seed: int = 0) -> list[dict[str, Any]]:
    """The best candidate wanted for every pair; the expert's action stands in each place equally often."""
    counts = [1 + len(pair.alternatives) for pair in pairs]
    positions = expert_positions([pair.pair_id for pair in pairs], counts, order_seed)

    async def one(numbered: tuple[int, Pair]) -> dict[str, Any]:
        number, pair = numbered
        position = int(positions[number])
        candidates = arranged(pair.pair_id, pair.expert_action, pair.alternatives, position)
        messages = examinee.template.choice_messages(pair.context, candidates)
        reply = await examinee.scored_answer(messages, f"choice {pair.pair_id}")
        parsed = parse_choice(reply.text, candidates)
        return {
            "pair_id": pair.pair_id,
            "task_id": pair.task_id,
            "split": pair.split,
            "inferable": pair.inferable,
            "margin": pair.margin,
            "verb": verb(pair.expert_action),
            "expert_position": position,
            "reply": reply.text,
            "log_probability": reply.log_probability,
            "well_formed": parsed.malformed is None,
            "named_a_candidate": parsed.index is not None,
            "chosen": parsed.index,
            "admissible": parsed.index is not None
            or match_action(parsed.text or "", pair.context.admissible_actions) is not None,
            "right": parsed.index == position,
        }

    return await _all(one, list(enumerate(pairs)), "choices")


async def ask_questions(examinee: Examinee, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Questions of general reasoning, with verified answers."""

    async def one(question: Question) -> dict[str, Any]:
        reply = await examinee.answer(question.messages, f"question {question.split}/{question.item}")
        return {
            "item": question.item,
            "split": question.split,
            "gold": question.gold,
            "reply": reply,
            "right": is_right(question, reply),
        }

    return await _all(one, questions, "reasoning")


async def _all(ask: Callable[[Item], Awaitable[Answer]], items: Sequence[Item], what: str) -> list[Answer]:
    progress = tqdm(total=len(items), desc=what)

    async def counted(item: Item) -> Answer:
        answer = await ask(item)
        progress.update()
        return answer

    try:
        return list(await asyncio.gather(*map(counted, items)))
    finally:
        progress.close()
