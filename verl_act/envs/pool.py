"""Environments in Ray actors: many episodes a process, and no episode is lost with its process.

- An actor that dies, hangs or grows too large is replaced, and its episodes are replayed: environments are
  deterministic.
- A caller's calls to one actor are serialized. Waiting steps are batched into one call, because a call costs more than
  a step of most environments.
- When an actor is lost, the steps of the lost call are retried one by one on the replacement. A step that was alone in
  its call is a suspect: it is retried once on a separate actor, where it can harm no other episode. The next step goes
  to the shared actor again.
- If the caller of a step is cancelled, it is unknown whether the step was applied: the next step replays the episode
  without it.
- Time-outs are measured in the actor: they start when a step starts, not when it is queued. A time-out ends the actor
  and logs the stack of what hung.
- An environment that fails at a step is discarded, and the step is retried once on a fresh one in the same actor,
  replayed to the same state. After `NoRoom` it is not retried: that would take memory from other episodes.

This module is what callers use; `actor_handle.py` is a caller's handle of one actor, `actor.py` is the actor.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from reprlib import repr as brief  # an action may be of any length
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

import ray
from ray.actor import ActorHandle

from verl_act.envs.actor import EnvActor
from verl_act.envs.actor_handle import ActorLost, PooledActor, UnknownOutcome
from verl_act.envs.base import NoRoom, Observation, StepResult, Task
from verl_act.envs.registry import get_env
from verl_act.errors import EnvError
from verl_act.settings.episodes import PoolSettings

Result = TypeVar("Result")

ALONE = 4
"""Most actors of a pool that retry suspects at the same time."""
SUSPECTED = 3
"""An episode that was a suspect this many times stays on separate actors."""
_PREFERENCE = 8
"""A task goes to its second actor when its first has this many more episodes."""


_RemoteActor: Any = ray.remote(EnvActor)  # Ray types a decorated class in a way that hides `options`


class EnvPool:
    """Opens episodes of one environment on shared actors. Bound to the event loop that uses it.

    All callers of a Ray job with the same environment and settings share the actors, which start on first use and end
    with the job. A task always goes to the same actor, which loads its game once for a whole group, or to a second
    one if the first has many more episodes of this caller.
    """

    def __init__(
        self, env: str, env_settings: Mapping[str, Any] | None = None, settings: PoolSettings | None = None
    ) -> None:
        """`env_settings` are the environment's, `settings` the pool's. Raises `ConfigError` for an unknown environment
        or a setting that it does not have.
        """
        self.settings = settings or PoolSettings()
        self._arguments = (env, dict(env_settings or {}))
        get_env(env).check_settings(self._arguments[1])
        key = f"{env}-{zlib.crc32(json.dumps(self._arguments, sort_keys=True, default=str).encode()):08x}"
        names = [f"verl_act-env-{key}-{index}" for index in range(self.settings.actors)]
        self.actors = [PooledActor(partial(self._start, name)) for name in names]
        self.alone = asyncio.Semaphore(ALONE)
        """Held by an episode that uses a `dedicated_actor`."""

    @classmethod
    def shared(cls, env: str, env_settings: Mapping[str, Any], settings: PoolSettings) -> EnvPool:
        """The pool of the running event loop for these settings; made at the first call."""
        pools = _SHARED.setdefault(asyncio.get_running_loop(), {})
        options = settings.model_dump(include=set(PoolSettings.model_fields))
        key = json.dumps([env, options, env_settings], sort_keys=True, default=str)
        if key not in pools:
            pools[key] = cls(env, env_settings, settings)
        return pools[key]

    @property
    def memory_mb(self) -> float:
        """The highest memory reading of an actor in MiB, child processes included; 0 before any has started.

        Read when an episode begins or ends, at most every few seconds.
        """
        return max(actor.most_mb for actor in self.actors)

    async def open(self, task: Task) -> EnvSession:
        """Start an episode of `task`. Raises `EnvError` if it cannot be loaded within the time-out, `NoRoom` if no
        actor has capacity for it.
        """
        preferred = self._actor_of(task)
        actors = sorted(self.actors, key=lambda actor: (actor is not preferred, actor.episodes))
        for actor in actors[:-1]:
            with suppress(NoRoom):
                return await self._open_on(actor, task)
        return await self._open_on(actors[-1], task)

    async def _open_on(self, actor: PooledActor, task: Task) -> EnvSession:
        session = EnvSession(self, actor, task)
        try:
            await session.start()
        except EnvError:
            await session.close()
            raise
        except BaseException:  # cancelled
            session.abandon()
            raise
        return session

    def _actor_of(self, task: Task) -> PooledActor:
        name = task.task_id.encode()
        first, second = (self.actors[zlib.crc32(salt + name) % len(self.actors)] for salt in (b"", b"second:"))
        return second if first.episodes > second.episodes + _PREFERENCE else first

    def dedicated_actor(self) -> PooledActor:
        """The handle of a new actor that no other episode uses."""
        return PooledActor(partial(self._start, None))

    def _start(self, name: str | None, generation: int) -> ActorHandle[Any]:
        # A lost actor's name may persist, so each replacement has a new one. All callers count the same way.
        options = {"name": f"{name}-{generation}", "get_if_exists": True} if name else {}
        actor = _RemoteActor.options(num_cpus=self.settings.num_cpus, **options)
        handle: ActorHandle[Any] = actor.remote(*self._arguments)
        return handle


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, EnvPool]] = WeakKeyDictionary()


class EnvSession:
    """One episode. Make its calls one after another."""

    first: Observation
    """The result of the reset."""

    @property
    def memory_mb(self) -> float:
        """Last memory reading of this episode's actor in MiB; see `EnvPool.memory_mb`."""
        return self.actor.memory_mb

    def __init__(self, pool: EnvPool, actor: PooledActor, task: Task) -> None:
        self._pool, self._limits = pool, pool.settings
        self.actor = actor
        self._task = task
        self._episode = uuid4().hex
        self.generation: int | None = None
        self.suspected = 0
        self._actions: list[str] = []
        self._last_result: Observation | StepResult | None = None
        self._counted_on: PooledActor | None = actor
        actor.episodes += 1

    async def start(self) -> None:
        """Reset the environment; called by `EnvPool.open`."""
        shared = self.actor

        async def reset() -> Observation:
            first: Observation = await self._replay()
            if self.actor is shared:  # in the same turn: the next is after the resets of all that wait
                await shared.keep_within(self._limits.max_memory_mb)
            return first

        try:
            async with shared.opening, shared.turn:
                self.first = await reset()
        except ActorLost:
            self.first = await self._alone(reset, "its reset")
        self._last_result = self.first

    async def step(self, action: str) -> StepResult:
        """Take `action`. Raises `EnvError` if the environment fails, dies or hangs on it twice, and `NoRoom` if the
        actor has no more capacity for the episode. If cancelled, the episode can continue without the action.
        """
        try:
            result = await self._take(action, f"action {brief(action)} at step {len(self._actions)}")
        except EnvError:
            raise
        except BaseException:  # cancelled: unknown whether the step was applied
            self.generation = None
            self.actor.forget(self._limits.step_timeout, self._episode)
            raise
        self._actions.append(action)
        self._last_result = result
        return result

    async def _take(self, action: str, what: str) -> StepResult:
        if self.suspected >= SUSPECTED:
            return await self._alone(lambda: self._step(action), what)
        try:
            return await self.actor.step(self._limits.step_timeout, self.generation, self._episode, action)
        except NoRoom:
            self.generation = None  # the actor has discarded the environment
            raise
        except EnvError:
            self.generation = None
            return await self._safely(lambda: self._try(action), what)
        except ActorLost:
            return await self._alone(lambda: self._step(action), what)
        except UnknownOutcome:
            self.generation = None
            return await self._safely(lambda: self._step(action), what)

    async def close(self) -> None:
        """Free the environment for the next episode. Never raises for a lost actor."""
        self._uncount()
        async with self.actor.turn:
            await self._leave()
            await self.actor.read_memory()

    def abandon(self) -> None:
        """As `close`, without waiting. For a cancelled caller, whose reset continues and would never be closed."""
        self._uncount()
        self.actor.forget(self._limits.step_timeout, self._episode)

    def _uncount(self) -> None:
        if self._counted_on is not None:
            self._counted_on.episodes -= 1
            self._counted_on = None

    async def _leave(self) -> None:
        if self.generation == self.actor.generation:
            self.generation = None
            with suppress(ActorLost):
                await self.actor.call(self._limits.step_timeout, "close", self._episode)

    async def _safely(self, attempt: Callable[[], Awaitable[Result]], what: str) -> Result:
        try:
            async with self.actor.turn:
                return await attempt()
        except ActorLost:
            return await self._alone(attempt, what)

    async def _alone(self, attempt: Callable[[], Awaitable[Result]], what: str) -> Result:
        """Run `attempt` on a temporary actor that no other episode uses. The next step goes to the shared actor again,
        unless this episode was a suspect too often.
        """
        self.suspected += 1
        shared = self.actor
        async with self._pool.alone:
            self.actor, self.generation = self._pool.dedicated_actor(), None
            try:
                async with self.actor.turn:
                    return await attempt()
            except ActorLost as lost:
                raise EnvError(
                    f"{self._task}: the environment was lost twice on {what}: {lost}. The episode is given up."
                ) from lost
            finally:
                self.actor.discard()
                self.actor, self.generation = shared, None

    async def _step(self, action: str) -> StepResult:
        try:
            return await self._try(action)
        except (_Diverged, NoRoom):
            raise
        except EnvError:
            return await self._try(action)

    async def _try(self, action: str) -> StepResult:
        if self.generation != self.actor.generation:
            result = await self._replay()
            if result != self._last_result:
                await self._leave()  # that state must not be used
                raise _Diverged(
                    f"{self._task}: replaying {brief(self._actions)} gave another state; the environment is not "
                    "deterministic."
                )
        try:
            stepped: StepResult = await self.actor.call(self._limits.step_timeout, "step", self._episode, action)
            return stepped
        except EnvError:
            self.generation = None  # the actor has discarded the environment
            raise

    async def _replay(self) -> Any:
        """The `StepResult` of the last action; the first `Observation` if there is none."""
        result = await self.actor.call(
            self._limits.reset_timeout, "play", self._limits.step_timeout, self._episode, self._task, self._actions
        )
        self.generation = self.actor.generation
        return result


class _Diverged(EnvError):
    """A replay reached a different state. Another replay would not help."""
