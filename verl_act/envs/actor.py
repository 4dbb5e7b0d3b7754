"""The Ray actor of an environment pool: hosts many episodes in one process, with a time limit for each call."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray

from verl_act.envs.base import Environment, NoRoom, Observation, ReleasingEnvironment, StepResult, Task
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, EnvError


class EnvActor:
    """Hosts the environments of many episodes in one process. `limit` is the time limit of a call in seconds."""

    def __init__(self, env: str, env_settings: dict[str, Any]) -> None:
        # Where a call takes too long: the stacks of all threads, then the signal's default, the end of the process.
        faulthandler.register(signal.SIGALRM, file=2, all_threads=True, chain=True)
        self._env, self._settings = env, env_settings
        self._prepared = False
        self.playing: dict[str, Environment] = {}
        self._idle: list[Environment] = []

    def process(self, limit: float) -> tuple[str, int]:
        """The actor's node id and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def prepare(self, limit: float) -> None:
        """Run `EnvSpec.prepare` once. Each caller calls this before its first episode."""
        if not self._prepared:
            with _limited(limit):
                get_env(self._env).prepare(**self._settings)
            self._prepared = True

    def play(
        self, limit: float, step_limit: float, episode: str, task: Task, actions: list[str]
    ) -> Observation | StepResult:
        """Start `episode` (again) and take `actions`. Returns the result of the last action, or else of the reset.

        `limit` applies to the reset, `step_limit` to each action.
        """
        with _limited(limit):
            environment = self.playing.pop(episode, None)
            if environment is None:
                environment = self._idle.pop() if self._idle else self.make()
        try:
            with _limited(limit):
                result: Observation | StepResult = environment.reset(task)
            for action in actions:
                with _limited(step_limit):
                    result = environment.step(action)
        except (Exception, SystemExit):
            _discard(environment)
            raise
        self.playing[episode] = environment
        return result

    def step(self, limit: float, episode: str, action: str) -> StepResult:
        """Take one action. An environment that fails is discarded: its state can no longer be trusted."""
        with _limited(limit):
            try:
                return self.playing[episode].step(action)
            except (Exception, SystemExit):
                _discard(self.playing.pop(episode))
                raise

    def steps(self, limit: float, actions: list[tuple[str, str]]) -> list[StepResult | EnvError]:
        """Take (episode id, action) pairs, each within the limit. Returns a result or the error for each."""
        results: list[StepResult | EnvError] = []
        for episode, action in actions:
            try:
                results.append(self.step(limit, episode, action))
            except ActError as error:
                results.append(portable(error))
        return results

    def memory_mb(self, limit: float) -> float:
        """Resident memory of this process and its children in MiB; shared pages count in each process."""
        with _limited(limit):
            me = psutil.Process()
            held = 0
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    held += process.memory_info().rss
            return held / 2**20

    def close(self, limit: float, episode: str) -> None:
        """End the episode and keep its environment, unless it has failed, for another episode."""
        environment = self.playing.pop(episode, None)
        if environment is None:
            return
        with _limited(limit):
            try:
                if isinstance(environment, ReleasingEnvironment):
                    environment.release()
            except (Exception, SystemExit):  # the episode is over: only do not reuse this environment
                _discard(environment)
                return
        self._idle.append(environment)

    def make(self) -> Environment:
        return get_env(self._env).make(**self._settings)


def portable(error: BaseException) -> EnvError:
    """`error` as an `EnvError` of a class that every process can unpickle."""
    return NoRoom(str(error)) if isinstance(error, NoRoom) else EnvError(str(error))


def _discard(environment: Environment) -> None:
    with suppress(Exception, SystemExit):  # the failure is already being raised
        environment.close()


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Kill this process if the block takes longer: nothing else stops an engine that hangs in native code.

    By a timer of the operating system, which costs microseconds; a watchdog thread would take longer than most steps.
    Converts other exceptions to `EnvError`, which every caller can unpickle.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except ActError:
        raise
    except (Exception, SystemExit) as error:  # SystemExit would end the actor and its other episodes
        raise EnvError(f"{type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
