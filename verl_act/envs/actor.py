"""What runs in an actor of a pool: the environments of many episodes in one process, each call within its time."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray

from verl_act.envs.base import Environment, NoRoom, Observation, ReleasingEnvironment, StepResult, Task
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, EnvError


class EnvActor:
    """Hosts the environments of many episodes in one process. Each call says how many seconds it may take."""

    def __init__(self, env: str, env_settings: dict[str, Any]) -> None:
        self._env, self._settings = env, env_settings
        self._prepared = False
        self._playing: dict[str, Environment] = {}
        self._idle: list[Environment] = []

    def process(self, limit: float) -> tuple[str, int]:
        """The node that it runs on, and its process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

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
        except (Exception, SystemExit):
            _throw_away(environment)
            raise
        self._playing[episode] = environment
        return shown

    def step(self, limit: float, episode: str, action: str) -> StepResult:
        """Take one action. An environment that fails is thrown away: its state can no longer be trusted."""
        with _limited(limit):
            try:
                return self._playing[episode].step(action)
            except (Exception, SystemExit):
                _throw_away(self._playing.pop(episode))
                raise

    def steps(self, limit: float, asked: list[tuple[str, str]]) -> list[StepResult | EnvError]:
        """One action of each of several episodes, each within the limit; for one that fails, its error."""
        said: list[StepResult | EnvError] = []
        for episode, action in asked:
            try:
                said.append(self.step(limit, episode, action))
            except ActError as error:
                said.append(portable(error))
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
            except (Exception, SystemExit):  # the episode is over already: only this environment is not used again
                _throw_away(environment)
                return
        self._idle.append(environment)

    def _make(self) -> Environment:
        return get_env(self._env).make(**self._settings)


def portable(error: BaseException) -> EnvError:
    """What `error` is to a caller: an `EnvError` of a class that every process knows."""
    return NoRoom(str(error)) if isinstance(error, NoRoom) else EnvError(str(error))


def _throw_away(environment: Environment) -> None:
    with suppress(Exception, SystemExit):  # why it failed is being told already
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
    except (Exception, SystemExit) as error:  # the latter would end the actor, and others' episodes with it
        raise EnvError(f"{type(error).__name__}: {error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
