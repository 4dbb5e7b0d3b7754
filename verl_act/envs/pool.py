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
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from reprlib import repr as brief  # an action may be of any length
from typing import Any, NamedTuple, Protocol
from uuid import uuid4
from weakref import WeakKeyDictionary

import psutil
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from verl_act.envs.base import Environment, NoRoom, Observation, ReleasingEnvironment, StepResult, Task
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, ConfigError, EnvError

logger = logging.getLogger(__name__)

_GROWN_AFTER = 16
"""Episodes that an actor has served before its size says that it grows: what is large at once will be so again."""
_GROWN = 1.5
"""So many times what it held with its first episodes an actor holds when another in its place would be smaller."""
_ALONE = 4
"""Actors of a pool, at most, that retry a suspect."""
_SUSPECTED = 3
"""Times that an episode was a suspect, after which none of its steps is taken among others."""
_PREPARE_SECONDS = 3600.0
"""WebShop's full catalogue takes minutes; on a slow disk, or waiting for another process, more."""
_TOGETHER = 8
"""Steps in one call, at most: its answers come with the last of them."""
_MEMORY_SECONDS = 60.0
_MEMORY_EVERY = 5.0
"""Seconds: an actor reads the whole process table to know what it holds."""
_LEAN = 8
"""So many more episodes than on the other of its two actors, and a task goes there."""
_OTHERS_SECONDS = 3600.0
"""What a caller waits beyond a time-out: its call may stand behind those of other processes, or while they prepare."""


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
        if actors < 1 or min(step_timeout, reset_timeout, max_memory_mb) <= 0:
            raise ConfigError(
                f"A pool needs actors, time and memory: {actors=}, {step_timeout=}, {reset_timeout=}, {max_memory_mb=}."
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
        self._hosts = [_Host(self._starter(f"verl_act-env-{key}-{at}"), self._prepares) for at in range(actors)]
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

    async def _open_on(self, host: _Host, task: Task) -> EnvSession:
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

    def _host_of(self, task: Task) -> _Host:
        name = task.task_id.encode()
        first, second = (self._hosts[zlib.crc32(salt + name) % len(self._hosts)] for salt in (b"", b"second:"))
        return second if first.episodes > second.episodes + _LEAN else first

    def lone_host(self) -> _Host:
        """A host that no other episode uses."""
        return _Host(self._starter(None), self._prepares)

    def _starter(self, name: str | None) -> Callable[[int], ActorHandle]:
        def start(generation: int) -> ActorHandle:
            # A lost actor's name may linger, so each replacement has its own; all callers count the same way.
            options = {"name": f"{name}-{generation}", "get_if_exists": True} if name else {}
            return _HostActor.options(num_cpus=self._num_cpus, **options).remote(*self._arguments)

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

    def __init__(self, pool: EnvPool, host: _Host, task: Task) -> None:
        self._pool = pool
        self._host = host
        self._task = task
        self._episode = uuid4().hex
        self._generation: int | None = None
        self._suspected = 0
        self._actions: list[str] = []
        self._shown: Observation | StepResult | None = None
        self._counted_on: _Host | None = host
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
        except _HostLost:
            return await self._alone(lambda: self._step(action), what)
        except _Untold:
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
            with suppress(_HostLost):
                await self._host.call(self._pool.step_timeout, "close", self._episode)

    async def _safely(self, attempt: Callable[[], Any], what: str) -> Any:
        try:
            async with self._host.turn:
                return await attempt()
        except _HostLost:
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
            except _HostLost as lost:
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


class _HostLost(Exception):
    """An actor died, or did not answer in time."""


class _Untold(Exception):
    """What became of a step is not known: others were in the call that was lost, or the actor was before."""


class _Waiting(NamedTuple):
    """A step that waits for its turn."""

    generation: int | None
    episode: str
    action: str
    answer: asyncio.Future[StepResult]


class _Host:
    """A caller's view of one actor: started (and prepared) when first needed, replaced when lost."""

    def __init__(self, start: Callable[[int], ActorHandle], prepares: bool = False) -> None:
        self._start = start
        self._prepares = prepares
        self._actor: ActorHandle | None = None
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

        Raises the environment's `EnvError`; `_HostLost` where the actor was lost on this step alone; else `_Untold`.
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
                _tell(step, _Untold())
        if not going:
            return
        try:
            said = await self.call(timeout, "steps", [(step.episode, step.action) for step in going])
        except (EnvError, _HostLost) as error:
            for step in going:
                _tell(step, error if len(going) == 1 else _Untold())
        except BaseException:  # this caller is cancelled; the others are not
            for step in going:
                _tell(step, _Untold())
            raise
        else:
            for step, result in zip(going, said, strict=True):
                _tell(step, result)

    async def call(self, timeout: float, method: str, *arguments: Any) -> Any:
        """Call the actor. Raises the environment's `EnvError`, or `_HostLost`, after which the actor is replaced."""
        if self._actor is None:
            self._actor = self._start(self.generation)
            if self._prepares:
                await self._ask(_PREPARE_SECONDS, "prepare")
        return await self._ask(timeout, method, *arguments)

    async def _ask(self, timeout: float, method: str, *arguments: Any) -> Any:
        actor, asked = self._actor, time.monotonic()
        try:
            return await asyncio.wait_for(getattr(actor, method).remote(timeout, *arguments), timeout + _OTHERS_SECONDS)
        except RayTaskError as error:
            raise _portable(error.cause) from error
        except (
            TimeoutError,
            RayError,
        ) as error:  # Ray has many: a dead actor or node, its memory monitor, a lost reply
            reason = f"its process died ({type(error).__name__})"
            if time.monotonic() - asked >= timeout:
                reason = f"no answer within {timeout:g} s"
        if actor is self._actor:
            self.discard()
        raise _HostLost(reason)

    async def keep_within(self, limit_mb: float) -> None:
        """Leave an actor that has grown beyond the limit; the next call starts another, and episodes are replayed."""
        async with self.turn:
            if self._actor is None:
                return
            self._served += 1
            if not await self.read_memory() or self.memory_mb <= limit_mb:
                return
            if self.memory_mb > _GROWN * self._fresh_mb:
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
                    _GROWN,
                )

    async def read_memory(self) -> bool:
        """Ask what the actor holds, if that was not done a moment ago; whether it has answered."""
        if self._actor is None or (self.memory_mb and time.monotonic() - self._asked_at < _MEMORY_EVERY):
            return False
        self._asked_at = time.monotonic()
        try:
            self.memory_mb = await self._ask(_MEMORY_SECONDS, "memory_mb")
        except (_HostLost, EnvError):
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


def _tell(step: _Waiting, result: StepResult | Exception) -> None:
    if step.answer.done():
        return
    if isinstance(result, Exception):
        step.answer.set_exception(result)
    else:
        step.answer.set_result(result)


def _portable(error: BaseException) -> EnvError:
    """What `error` is to a caller: an `EnvError` of a class that every process knows."""
    return NoRoom(str(error)) if isinstance(error, NoRoom) else EnvError(str(error))


def _throw_away(environment: Environment) -> None:
    with suppress(Exception):  # why it failed is being told already
        environment.close()


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End this process where the block takes longer: nothing else stops an engine that hangs in native code.

    What it raises is told as an `EnvError`, which every caller can unpickle.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    except ActError:
        raise
    except Exception as error:
        raise EnvError(f"{type(error).__name__}: {error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()


class _EnvHost:
    """Hosts the environments of many episodes in one process. Each call says how many seconds it may take."""

    def __init__(self, env: str, env_settings: dict[str, Any]) -> None:
        self._env, self._settings = env, env_settings
        self._prepared = False
        self._playing: dict[str, Environment] = {}
        self._idle: list[Environment] = []

    def prepare(self, limit: float) -> None:
        """Called by each caller before its first episode, and done once; see `EnvSpec.prepare`."""
        prepare = get_env(self._env).prepare
        if prepare is not None and not self._prepared:
            with _limited(limit):
                prepare(**self._settings)
            self._prepared = True

    def play(
        self, limit: float, step_limit: float, episode: str, task: Task, actions: list[str]
    ) -> Observation | StepResult:
        """Start `episode` (again) and take `actions`; what the last of them, or else the reset, shows.

        `limit` is for the reset, `step_limit` for each action.
        """
        with _limited(limit):
            environment = self._playing.pop(episode, None) or (self._idle.pop() if self._idle else self._make())
        try:
            with _limited(limit):
                shown: Observation | StepResult = environment.reset(task)
            for action in actions:
                with _limited(step_limit):
                    shown = environment.step(action)
        except Exception:
            _throw_away(environment)
            raise
        self._playing[episode] = environment
        return shown

    def step(self, limit: float, episode: str, action: str) -> StepResult:
        """Take one action. An environment that fails is thrown away: its state can no longer be trusted."""
        with _limited(limit):
            try:
                return self._playing[episode].step(action)
            except Exception:
                _throw_away(self._playing.pop(episode))
                raise

    def steps(self, limit: float, asked: list[tuple[str, str]]) -> list[StepResult | EnvError]:
        """One action of each of several episodes, each within the limit; for one that fails, its error."""
        said: list[StepResult | EnvError] = []
        for episode, action in asked:
            try:
                said.append(self.step(limit, episode, action))
            except ActError as error:
                said.append(_portable(error))
        return said

    def memory_mb(self, limit: float) -> float:
        """Of this process and those that it started, pages that they share counted once in each."""
        with _limited(limit):
            me = psutil.Process()
            held = 0
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    held += process.memory_info().rss
            return held / 2**20

    def close(self, limit: float, episode: str) -> None:
        """Keep the environment, if it has not failed, for another episode."""
        environment = self._playing.pop(episode, None)
        if environment is None:
            return
        with _limited(limit):
            try:
                if isinstance(environment, ReleasingEnvironment):
                    environment.release()
            except Exception:  # the episode is over already: only this environment is not used again
                _throw_away(environment)
                return
        self._idle.append(environment)

    def _make(self) -> Environment:
        return get_env(self._env).make(**self._settings)


_HostActor: Any = ray.remote(_EnvHost)  # Ray types a decorated class in a way that hides `options`
