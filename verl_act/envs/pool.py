"""Environments in Ray actors: many episodes a process, no episode waiting for another, and none lost with its process.

An actor that dies, hangs or has grown too large is replaced, and its episodes are replayed to where they were:
environments are deterministic. A caller's calls to one actor take turns; steps that wait for theirs go together in one
call, which costs more than a step of most environments does. When an actor is lost, the steps of the call that its
caller was waiting for are retried one by one on the replacement. One that was alone in its call is a suspect: it is
retried once, on an actor of its own, where it can hurt no other episode; the next step is among the others again. A
step whose caller is cancelled may have been taken or not: the next one replays the episode without it. Time-outs are
the actor's own: they begin when a step does, not while those of other episodes come first, and one that passes ends the
actor, with the stack of what hung in its log. An environment that fails at a step is thrown away, and the step is
retried once on a fresh one in the same actor, replayed to the same state; not so one that has no room there (`NoRoom`),
which would take it from the others.

Here is what callers use; `host.py` is a caller's view of one actor, `actor.py` what runs in it.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from reprlib import repr as brief  # an action may be of any length
from typing import Any, Protocol
from uuid import uuid4
from weakref import WeakKeyDictionary

import ray
from ray.actor import ActorHandle

from verl_act.envs.actor import EnvActor
from verl_act.envs.actor_handle import ActorLost, PooledActor, UnknownOutcome
from verl_act.envs.base import NoRoom, Observation, StepResult, Task
from verl_act.envs.registry import get_env
from verl_act.envs.settings import check_pool
from verl_act.errors import EnvError

_ALONE = 4
"""Actors of a pool, at most, that retry a suspect."""
_SUSPECTED = 3
"""Times that an episode was a suspect, after which none of its steps is taken among others."""
_PREFERENCE = 8
"""So many more episodes than on the other of its two actors, and a task goes there."""


_RemoteActor: Any = ray.remote(EnvActor)  # Ray types a decorated class in a way that hides `options`


class PoolSettings(Protocol):
    """The part of a rollout's settings that a pool needs; time-outs in seconds."""

    @property
    def actors(self) -> int: ...
    @property
    def step_timeout(self) -> float: ...
    @property
    def reset_timeout(self) -> float: ...
    @property
    def max_memory_mb(self) -> float: ...
    @property
    def env_settings(self) -> dict[str, Any]: ...


class EnvPool:
    """Opens episodes of one environment on shared actors. Belongs to the event loop that uses it.

    All callers of a Ray job that ask for the same environment and settings share the actors, which are started when
    first needed and end with the job. A task goes to the same actor, which then loads its game once for a whole group,
    or to a second one where the first has many more episodes of this caller's.
    """

    def __init__(
        self,
        env: str,
        env_settings: Mapping[str, Any] | None = None,
        *,
        actors: int = 1,
        step_timeout: float = 60.0,
        reset_timeout: float = 120.0,
        max_memory_mb: float = 8192.0,
        num_cpus: float = 0.0,
    ) -> None:
        """Time-outs in seconds of a step and of a reset; neither starting an actor nor what the environment prepares
        (`EnvSpec.prepare`) counts. An actor that has grown beyond `max_memory_mb`, with the processes that it started,
        is replaced when the next episode begins; one that held about as much from the start is not, for another would
        too. `num_cpus` is what Ray reserves.

        Raises `ConfigError` for an unknown environment, or without actors, time or memory.
        """
        check_pool(
            actors=actors,
            step_timeout=step_timeout,
            reset_timeout=reset_timeout,
            max_memory_mb=max_memory_mb,
            num_cpus=num_cpus,
        )
        get_env(env)
        self.step_timeout = step_timeout
        self.reset_timeout = reset_timeout
        self.max_memory_mb = max_memory_mb
        self._arguments = (env, dict(env_settings or {}))
        get_env(env).check_settings(self._arguments[1])
        self._num_cpus = num_cpus
        key = f"{env}-{zlib.crc32(json.dumps(self._arguments, sort_keys=True, default=str).encode()):08x}"
        self._prepares = get_env(env).prepare is not None
        self._hosts = [PooledActor(self._starter(f"verl_act-env-{key}-{at}"), self._prepares) for at in range(actors)]
        self.alone = asyncio.Semaphore(_ALONE)
        """Held by an episode that has a `lone_host`."""

    @classmethod
    def shared(cls, env: str, settings: PoolSettings) -> EnvPool:
        """The pool of the running event loop for `env` and `settings`; made at the first call."""
        pools = _SHARED.setdefault(asyncio.get_running_loop(), {})
        options: dict[str, Any] = {
            "actors": settings.actors,
            "step_timeout": settings.step_timeout,
            "reset_timeout": settings.reset_timeout,
            "max_memory_mb": settings.max_memory_mb,
        }
        key = json.dumps([env, options, settings.env_settings], sort_keys=True, default=str)
        if key not in pools:
            pools[key] = cls(env, settings.env_settings, **options)
        return pools[key]

    @property
    def memory_mb(self) -> float:
        """The most that one of its actors was seen to hold, with the processes it started; 0 before any has begun.

        Read where an episode begins or ends, every few seconds at most.
        """
        return max(host.most_mb for host in self._hosts)

    async def open(self, task: Task) -> EnvSession:
        """Start an episode of `task`. Raises `EnvError` where it cannot be loaded, or is not within the time-out;
        `NoRoom` where none of the actors has room for it.
        """
        own = self._host_of(task)
        hosts = sorted(self._hosts, key=lambda host: (host is not own, host.episodes))
        for host in hosts[:-1]:
            with suppress(NoRoom):
                return await self._open_on(host, task)
        return await self._open_on(hosts[-1], task)

    async def _open_on(self, host: PooledActor, task: Task) -> EnvSession:
        session = EnvSession(self, host, task)
        try:
            await session.start()
            await host.keep_within(self.max_memory_mb)
        except EnvError:
            await session.close()
            raise
        except BaseException:  # cancelled
            session.abandon()
            raise
        return session

    def _host_of(self, task: Task) -> PooledActor:
        name = task.task_id.encode()
        first, second = (self._hosts[zlib.crc32(salt + name) % len(self._hosts)] for salt in (b"", b"second:"))
        return second if first.episodes > second.episodes + _PREFERENCE else first

    def lone_host(self) -> PooledActor:
        """A host that no other episode uses."""
        return PooledActor(self._starter(None), self._prepares)

    def _starter(self, name: str | None) -> Callable[[int], ActorHandle]:
        def start(generation: int) -> ActorHandle:
            # A lost actor's name may linger, so each replacement has its own; all callers count the same way.
            options = {"name": f"{name}-{generation}", "get_if_exists": True} if name else {}
            return _RemoteActor.options(num_cpus=self._num_cpus, **options).remote(*self._arguments)

        return start


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, EnvPool]] = WeakKeyDictionary()


class EnvSession:
    """One episode. Its calls are made one after another."""

    first: Observation
    """What the reset showed."""

    @property
    def memory_mb(self) -> float:
        """Held by the actor that plays it, as last read there, with the processes it started; see
        `EnvPool.memory_mb`.
        """
        return self._host.memory_mb

    def __init__(self, pool: EnvPool, host: PooledActor, task: Task) -> None:
        self._pool = pool
        self._host = host
        self._task = task
        self._episode = uuid4().hex
        self._generation: int | None = None
        self._suspected = 0
        self._actions: list[str] = []
        self._shown: Observation | StepResult | None = None
        self._counted_on: PooledActor | None = host
        host.episodes += 1

    async def start(self) -> None:
        """Reset the environment; called by `EnvPool.open`."""
        self.first = self._shown = await self._safely(self._replay, "its reset")

    async def step(self, action: str) -> StepResult:
        """Take `action`. Raises `EnvError` where the environment fails, dies or hangs on it twice, and `NoRoom` where
        there is none for the episode any more. If cancelled, the action is no part of the episode, which can go on.
        """
        try:
            result = await self._take(action, f"action {brief(action)} at step {len(self._actions)}")
        except EnvError:
            raise
        except BaseException:  # cancelled: whether the actor takes the step is not known
            self._generation = None
            self._host.forget(self._pool.step_timeout, self._episode)
            raise
        self._actions.append(action)
        self._shown = result
        return result

    async def _take(self, action: str, what: str) -> StepResult:
        if self._suspected >= _SUSPECTED:
            return await self._alone(lambda: self._step(action), what)
        try:
            return await self._host.step(self._pool.step_timeout, self._generation, self._episode, action)
        except NoRoom:
            self._generation = None  # the actor has thrown the environment away
            raise
        except EnvError:
            self._generation = None
            return await self._safely(lambda: self._try(action), what)
        except ActorLost:
            return await self._alone(lambda: self._step(action), what)
        except UnknownOutcome:
            self._generation = None
            return await self._safely(lambda: self._step(action), what)

    async def close(self) -> None:
        """Free the environment for the next episode; never raises for an actor that is gone."""
        self._uncount()
        async with self._host.turn:
            await self._leave()
            await self._host.read_memory()

    def abandon(self) -> None:
        """As `close`, without waiting: a reset whose caller was cancelled goes on, and would never be closed."""
        self._uncount()
        self._host.forget(self._pool.step_timeout, self._episode)

    def _uncount(self) -> None:
        if self._counted_on is not None:
            self._counted_on.episodes -= 1
            self._counted_on = None

    async def _leave(self) -> None:
        if self._generation == self._host.generation:
            self._generation = None
            with suppress(ActorLost):
                await self._host.call(self._pool.step_timeout, "close", self._episode)

    async def _safely(self, attempt: Callable[[], Any], what: str) -> Any:
        try:
            async with self._host.turn:
                return await attempt()
        except ActorLost:
            return await self._alone(attempt, what)

    async def _alone(self, attempt: Callable[[], Any], what: str) -> Any:
        """Attempt it on an actor that no other episode uses, and that ends with it: the next step is replayed to among
        the others again, unless this episode was alone too often.
        """
        self._suspected += 1
        shared = self._host
        async with self._pool.alone:
            self._host, self._generation = self._pool.lone_host(), None
            try:
                async with self._host.turn:
                    return await attempt()
            except ActorLost as lost:
                raise EnvError(
                    f"{self._task}: the environment was lost twice on {what}: {lost}. The episode is given up."
                ) from lost
            finally:
                self._host.discard()
                self._host, self._generation = shared, None

    async def _step(self, action: str) -> StepResult:
        try:
            return await self._try(action)
        except (_Diverged, NoRoom):
            raise
        except EnvError:
            return await self._try(action)

    async def _try(self, action: str) -> StepResult:
        if self._generation != self._host.generation:
            shown = await self._replay()
            if shown != self._shown:
                await self._leave()  # nobody may step in that state
                raise _Diverged(
                    f"{self._task}: replaying {brief(self._actions)} gave another state; the environment is not "
                    "deterministic."
                )
        try:
            return await self._host.call(self._pool.step_timeout, "step", self._episode, action)
        except EnvError:
            self._generation = None  # the actor has thrown the environment away
            raise

    async def _replay(self) -> Observation | StepResult:
        shown = await self._host.call(
            self._pool.reset_timeout, "play", self._pool.step_timeout, self._episode, self._task, self._actions
        )
        self._generation = self._host.generation
        return shown


class _Diverged(EnvError):
    """A replay came to another state; another replay would prove nothing."""
