"""A caller's handle of one pool actor: serializes calls, batches steps, watches memory, and replaces a lost actor."""

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

GROWN_AFTER = 16
"""Episodes after which more memory counts as growth. What earlier ones need, a replacement would need as well."""
_GROWTH = 1.5
"""Memory, relative to that of the first episodes, from which a replacement actor would be smaller."""
_BATCH_SIZE = 8
"""Most steps in one call. The results of a call arrive together, after its last step."""
_MEMORY_SECONDS = 60.0
MEMORY_EVERY = 5.0
"""Seconds between two readings: an actor scans the whole process table for one."""
_QUEUE_SECONDS = 3600.0
"""Extra seconds beyond a time-out: a call may queue behind those of other processes, or behind `prepare`."""
_STOPPED_EVERY = 5.0
"""Seconds between checks for a stopped (SIGSTOP) actor process, which its own time-outs cannot end."""


class ActorLost(Exception):
    """An actor died, or did not answer in time."""


class UnknownOutcome(Exception):
    """Unknown whether the step was applied: the lost call held other steps, or the actor was lost before."""


class _PendingStep(NamedTuple):
    """A step that waits to be sent."""

    generation: int | None
    episode: str
    action: str
    answer: asyncio.Future[StepResult]


class PooledActor:
    """Handle of one actor: started (and prepared) on first use, replaced when lost."""

    def __init__(self, start: Callable[[int], ActorHandle[Any]]) -> None:
        self._start = start
        self.handle: ActorHandle[Any] | None = None
        self._process: tuple[str, int] | None = None
        """Node id and process id."""
        self.generation = 0
        self.turn = asyncio.Lock()
        self.opening = asyncio.Lock()
        """For resets, which wait for their `turn` one at a time: each takes as long as hundreds of steps, which would
        wait for all of them."""
        self.episodes = 0
        """This caller's open episodes on the actor."""
        self.memory_mb = 0.0
        """As last read; 0 before the first reading."""
        self.most_mb = 0.0
        """The highest reading, over all replacements of the actor."""
        self._fresh_mb = 0.0
        """Memory that the actor uses with its first episodes."""
        self._read_at = 0.0
        self._served = 0
        self._settled = False
        """Whether `_fresh_mb` is final: later increases are growth."""
        self._warned = False
        self._waiting: list[_PendingStep] = []

    async def step(self, timeout: float, generation: int | None, episode: str, action: str) -> StepResult:
        """Step an episode that was last replayed in `generation`, batched with other waiting steps.

        Raises the environment's `EnvError`; `ActorLost` if the actor was lost on this step alone; `UnknownOutcome` if
        it was lost otherwise.
        """
        answer: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_PendingStep(generation, episode, action, answer))
        try:
            async with self.turn:  # the first to acquire it sends everybody's steps
                while not answer.done():
                    await self._send(timeout)
            return answer.result()
        finally:
            answer.cancel()  # no longer awaited

    async def _send(self, timeout: float) -> None:
        waiting = [step for step in self._waiting if not step.answer.done()]
        sent, self._waiting = waiting[:_BATCH_SIZE], waiting[_BATCH_SIZE:]
        current = [step for step in sent if step.generation == self.generation]
        for step in sent:
            if step not in current:
                _resolve(step, UnknownOutcome())
        if not current:
            return
        results: list[StepResult | Exception] = [UnknownOutcome() for _ in current]
        try:
            results = await self.call(timeout, "steps", [(step.episode, step.action) for step in current])
        except (EnvError, ActorLost) as error:
            if len(current) == 1:
                results = [error]
        finally:  # also if this caller alone is cancelled
            for step, result in zip(current, results, strict=True):
                _resolve(step, result)

    async def call(self, timeout: float, method: str, *arguments: Any) -> Any:
        """Call the actor. Raises the environment's `EnvError`, or `ActorLost`; the next call replaces a lost actor."""
        if self.handle is None:
            self.handle, self._process = self._start(self.generation), None
            self._process = await self._ask(PREPARE_SECONDS, "process")
            await self._ask(PREPARE_SECONDS, "prepare")
        return await self._ask(timeout, method, *arguments)

    async def _ask(self, timeout: float, method: str, *arguments: Any) -> Any:
        handle, sent_at = self.handle, time.monotonic()
        try:
            return await self._answer(getattr(handle, method).remote(timeout, *arguments), timeout)
        except RayTaskError as error:
            raise portable(error.cause) from error
        except (
            TimeoutError,
            RayError,
        ) as error:  # Ray has many: a dead actor or node, its memory monitor, a lost reply
            reason = f"its process died ({type(error).__name__})"
            if time.monotonic() - sent_at >= timeout:
                reason = f"no answer within {timeout:g} s"
        if handle is self.handle:
            self.discard()
        raise ActorLost(reason)

    async def _answer(self, reference: Awaitable[Any], timeout: float) -> Any:
        """Await the actor's answer. After the time-out, kills an actor whose process is stopped."""
        answer = asyncio.ensure_future(reference)
        until = time.monotonic() + timeout + _QUEUE_SECONDS
        try:
            await asyncio.wait({answer}, timeout=timeout)
            while not answer.done() and time.monotonic() < until:
                if self._process is not None and await _kill_if_stopped(*self._process):
                    logger.warning(
                        "An environment process was stopped. It has been killed, and its episodes will be replayed."
                    )
                await asyncio.wait({answer}, timeout=_STOPPED_EVERY)
            if not answer.done():
                raise TimeoutError
            return await answer
        finally:
            answer.cancel()

    async def keep_within(self, limit_mb: float) -> None:
        """Replace an actor that has grown beyond the limit; its episodes are replayed on the next one. The caller has
        the `turn`."""
        if self.handle is None:
            return
        self._served += 1
        if not await self.read_memory() or self.memory_mb <= limit_mb:
            return
        if self.memory_mb > _GROWTH * self._fresh_mb:
            logger.warning("An environment process uses %.0f MB and will be replaced.", self.memory_mb)
            # Not killed: other callers may be waiting for its answers. If this caller started it, Ray ends it
            # anyway, and their episodes are replayed.
            self._leave()
        elif self._fresh_mb > limit_mb and not self._warned:
            self._warned = True
            logger.warning(
                "An environment process uses %.0f MB, more than max_memory_mb=%.0f, from its first episodes on. "
                "A new process would too, so it is replaced only if it grows to %.1f times that. Play fewer "
                "episodes in one process, with more `actors`, or raise the limit.",
                self._fresh_mb,
                limit_mb,
                _GROWTH,
            )

    async def read_memory(self) -> bool:
        """Read the actor's memory unless that was done a moment ago. Returns whether there is a new reading."""
        if self.handle is None or (self.memory_mb and time.monotonic() - self._read_at < MEMORY_EVERY):
            return False
        self._read_at = time.monotonic()
        try:
            self.memory_mb = await self._ask(_MEMORY_SECONDS, "memory_mb")
        except (ActorLost, EnvError):
            return False
        self.most_mb = max(self.most_mb, self.memory_mb)
        if not self._settled:
            self._fresh_mb = max(self._fresh_mb, self.memory_mb)
            self._settled = self._served >= GROWN_AFTER
        return True

    def forget(self, timeout: float, episode: str) -> None:
        """Close an episode without waiting, after the calls that are already queued."""
        if self.handle is not None:
            self.handle.close.remote(timeout, episode)

    def discard(self) -> None:
        """Kill the actor; the next call starts another."""
        if self.handle is not None:
            ray.kill(self.handle)
            self._leave()

    def _leave(self) -> None:
        self.handle = None
        self.generation += 1
        self.memory_mb = self._fresh_mb = 0.0
        self._served, self._settled = 0, False


async def _kill_if_stopped(node: str, pid: int) -> bool:
    """Runs on the actor's node. Returns False if the state of the process cannot be determined."""
    if node == ray.get_runtime_context().get_node_id():
        return kill_if_stopped(pid)
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    look = ray.remote(num_cpus=0)(kill_if_stopped).options(scheduling_strategy=strategy)
    try:
        return await asyncio.wait_for(look.remote(pid), _MEMORY_SECONDS)
    except (TimeoutError, RayError):
        return False


def _resolve(step: _PendingStep, result: StepResult | Exception) -> None:
    if step.answer.done():
        return
    if isinstance(result, Exception):
        step.answer.set_exception(result)
    else:
        step.answer.set_result(result)
