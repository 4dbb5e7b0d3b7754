"""A caller's view of one actor of a pool: its turns, the steps that go together in one call, its size and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_act.envs.actor import portable
from verl_act.envs.base import PREPARE_SECONDS, StepResult
from verl_act.errors import EnvError
from verl_act.process import kill_if_stopped

logger = logging.getLogger(__name__)

_GROWN_AFTER = 16
"""Episodes that an actor has served before its size says that it grows: what is large at once will be so again."""
_GROWTH = 1.5
"""So many times what it held with its first episodes an actor holds when another in its place would be smaller."""
_TOGETHER = 8
"""Steps in one call, at most: its answers come with the last of them."""
_MEMORY_SECONDS = 60.0
_MEMORY_EVERY = 5.0
"""Seconds: an actor reads the whole process table to know what it holds."""
_OTHERS_SECONDS = 3600.0
"""What a caller waits beyond a time-out: its call may stand behind those of other processes, or while they prepare."""
_LOOK_SECONDS = 5.0
"""How often it looks meanwhile whether the actor's process is stopped, which no time-out within the process ends."""


class ActorLost(Exception):
    """An actor died, or did not answer in time."""


class UnknownOutcome(Exception):
    """What became of a step is not known: others were in the call that was lost, or the actor was before."""


class _Waiting(NamedTuple):
    """A step that waits for its turn."""

    generation: int | None
    episode: str
    action: str
    answer: asyncio.Future[StepResult]


class PooledActor:
    """A caller's view of one actor: started (and prepared) when first needed, replaced when lost."""

    def __init__(self, start: Callable[[int], ActorHandle], prepares: bool = False) -> None:
        self._start = start
        self._prepares = prepares
        self._actor: ActorHandle | None = None
        self._process: tuple[str, int] | None = None
        """Its node and process id."""
        self.generation = 0
        self.turn = asyncio.Lock()
        self.episodes = 0
        """This caller's, open on it."""
        self.memory_mb = 0.0
        """As last read; 0 before it was."""
        self.most_mb = 0.0
        """Of all that was read, whichever actor held it."""
        self._fresh_mb = 0.0
        """What the actor holds with its first episodes."""
        self._asked_at = 0.0
        self._served = 0
        self._settled = False
        """Whether `_fresh_mb` stands: what comes later is growth."""
        self._told = False
        self._waiting: list[_Waiting] = []

    async def step(self, timeout: float, generation: int | None, episode: str, action: str) -> StepResult:
        """Take a step of an episode that was last replayed in `generation`, in one call with others that wait.

        Raises the environment's `EnvError`; `ActorLost` where the actor was lost on this step
        alone; `UnknownOutcome` otherwise.
        """
        answer: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(generation, episode, action, answer))
        try:
            async with self.turn:  # whoever has it first sends the steps of all
                while not answer.done():
                    await self._send(timeout)
            return answer.result()
        finally:
            answer.cancel()  # nobody waits for it any more

    async def _send(self, timeout: float) -> None:
        waiting = [step for step in self._waiting if not step.answer.done()]
        sent, self._waiting = waiting[:_TOGETHER], waiting[_TOGETHER:]
        going = [step for step in sent if step.generation == self.generation]
        for step in sent:
            if step not in going:
                _tell(step, UnknownOutcome())
        if not going:
            return
        try:
            said = await self.call(timeout, "steps", [(step.episode, step.action) for step in going])
        except (EnvError, ActorLost) as error:
            for step in going:
                _tell(step, error if len(going) == 1 else UnknownOutcome())
        except BaseException:  # this caller is cancelled; the others are not
            for step in going:
                _tell(step, UnknownOutcome())
            raise
        else:
            for step, result in zip(going, said, strict=True):
                _tell(step, result)

    async def call(self, timeout: float, method: str, *arguments: Any) -> Any:
        """Call the actor. Raises the environment's `EnvError`, or `ActorLost`, after which the actor is replaced."""
        if self._actor is None:
            self._actor, self._process = self._start(self.generation), None
            self._process = await self._ask(PREPARE_SECONDS, "process")
            if self._prepares:
                await self._ask(PREPARE_SECONDS, "prepare")
        return await self._ask(timeout, method, *arguments)

    async def _ask(self, timeout: float, method: str, *arguments: Any) -> Any:
        actor, asked = self._actor, time.monotonic()
        try:
            return await self._answer(getattr(actor, method).remote(timeout, *arguments), timeout)
        except RayTaskError as error:
            raise portable(error.cause) from error
        except (
            TimeoutError,
            RayError,
        ) as error:  # Ray has many: a dead actor or node, its memory monitor, a lost reply
            reason = f"its process died ({type(error).__name__})"
            if time.monotonic() - asked >= timeout:
                reason = f"no answer within {timeout:g} s"
        if actor is self._actor:
            self.discard()
        raise ActorLost(reason)

    async def _answer(self, reference: Awaitable[Any], timeout: float) -> Any:
        """What the actor answers. One that is stopped is killed soon after the time-out, and answers with its death."""
        answer = asyncio.ensure_future(reference)
        until = time.monotonic() + timeout + _OTHERS_SECONDS
        try:
            await asyncio.wait({answer}, timeout=timeout)
            while not answer.done() and time.monotonic() < until:
                if self._process is not None and await _kill_if_stopped(*self._process):
                    logger.warning("An environment process was stopped. It is killed, and its episodes are replayed.")
                await asyncio.wait({answer}, timeout=_LOOK_SECONDS)
            if not answer.done():
                raise TimeoutError
            return await answer
        finally:
            answer.cancel()

    async def keep_within(self, limit_mb: float) -> None:
        """Leave an actor that has grown beyond the limit; the next call starts another, and episodes are replayed."""
        async with self.turn:
            if self._actor is None:
                return
            self._served += 1
            if not await self.read_memory() or self.memory_mb <= limit_mb:
                return
            if self.memory_mb > _GROWTH * self._fresh_mb:
                logger.warning("An environment process holds %.0f MB and is replaced.", self.memory_mb)
                # Not killed, for other callers may be waiting for an answer. Where this one started it, Ray ends it all
                # the same, and their episodes are replayed.
                self._leave()
            elif self._fresh_mb > limit_mb and not self._told:
                self._told = True
                logger.warning(
                    "An environment process holds %.0f MB, more than max_memory_mb=%.0f, with its first episodes "
                    "already. Another would too, so it is replaced only where it grows to %.1f times that. Play fewer "
                    "at a time in one process, with more `actors`, or raise the limit.",
                    self._fresh_mb,
                    limit_mb,
                    _GROWTH,
                )

    async def read_memory(self) -> bool:
        """Ask what the actor holds, if that was not done a moment ago; whether it has answered."""
        if self._actor is None or (self.memory_mb and time.monotonic() - self._asked_at < _MEMORY_EVERY):
            return False
        self._asked_at = time.monotonic()
        try:
            self.memory_mb = await self._ask(_MEMORY_SECONDS, "memory_mb")
        except (ActorLost, EnvError):
            return False
        self.most_mb = max(self.most_mb, self.memory_mb)
        if not self._settled:
            self._fresh_mb = max(self._fresh_mb, self.memory_mb)
            self._settled = self._served >= _GROWN_AFTER
        return True

    def forget(self, timeout: float, episode: str) -> None:
        """Close an episode once the actor has done what it was asked before; nobody waits for it."""
        if self._actor is not None:
            self._actor.close.remote(timeout, episode)

    def discard(self) -> None:
        """End the actor; the next call starts another."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._leave()

    def _leave(self) -> None:
        self._actor = None
        self.generation += 1
        self.memory_mb = self._fresh_mb = 0.0
        self._served, self._settled = 0, False


async def _kill_if_stopped(node: str, pid: int) -> bool:
    """On the actor's node; False where that cannot be said."""
    if node == ray.get_runtime_context().get_node_id():
        return kill_if_stopped(pid)
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    look = ray.remote(num_cpus=0)(kill_if_stopped).options(scheduling_strategy=there)
    try:
        return await asyncio.wait_for(look.remote(pid), _MEMORY_SECONDS)
    except (TimeoutError, RayError):
        return False


def _tell(step: _Waiting, result: StepResult | Exception) -> None:
    if step.answer.done():
        return
    if isinstance(result, Exception):
        step.answer.set_exception(result)
    else:
        step.answer.set_result(result)
