"""Adapts a Gymnasium environment with text observations and actions to `Environment`.

Gymnasium is not imported: any object with `reset`, `step` and `close` of Gymnasium's signatures works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from verl_act.envs.base import Observation, StepResult, Task
from verl_act.envs.checked import BrokenPromise, as_number, as_texts
from verl_act.errors import ConfigError, EnvError
from verl_act.parse import match_action

_OVER = "The episode is over."


class GymnasiumEnv(Protocol):
    """The part of `gymnasium.Env` that is used."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any, /) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoKeys:
    """The keys of `info` for what Gymnasium's interface does not cover."""

    goal: str = "goal"
    """A string, read after `reset`."""
    admissible: str = "admissible_actions"
    """Strings, read after every call."""
    success: str = "success"
    """A bool, read when an episode terminates."""


class GymnasiumTextEnvironment:
    """Plays `environment`. `reset` passes it the task's seed, and `task_id` and `split` as options.

    The admissible actions are the listed ones. Only these reach the environment, in the spelling of the list. For any
    other text, on which many environments raise, the observation is `unknown_action` and the step counts.
    Subclass and override `accepts` if the list is incomplete, or `show` if observations are not strings.
    """

    unknown_action = "Nothing happens."
    """The observation after a text that is not a listed action."""

    def __init__(self, environment: GymnasiumEnv, *, max_steps: int = 50, keys: InfoKeys | None = None) -> None:
        """`max_steps` ends an episode without success, in addition to the environment's own limit."""
        if max_steps < 1:
            raise ConfigError(f"max_steps is {max_steps}; an episode needs at least one step.")
        self._environment = environment
        self._max_steps = max_steps
        self._keys = keys or InfoKeys()
        self._task: Task | None = None
        self._steps = 0
        self._admissible: tuple[str, ...] = ()
        self._observation = ""
        self._done = self._success = self._closed = False

    def reset(self, task: Task) -> Observation:
        """Start `task`. Raises `EnvError` if the environment fails or `info` lacks a key."""
        self._task, self._steps, self._done, self._success, self._closed = task, 0, False, False, False
        options = {"task_id": task.task_id, "split": task.split}
        try:
            observation, info = self._environment.reset(seed=task.seed, options=options)
            self._see(observation, info)
            return Observation(str(self._read_info(info, self._keys.goal)), self._observation, self._admissible)
        except Exception as error:
            self._task = None  # the previous episode must not continue
            if isinstance(error, EnvError):
                raise
            raise EnvError(f"{task}: cannot be reset: {type(error).__name__}: {error}") from error

    def step(self, action: str) -> StepResult:
        """Take `action`. After the end of an episode it has no effect. Raises `EnvError` as `reset` does."""
        if self._task is None:
            raise EnvError("No episode is being played. Call `reset(task)` first.")
        if self._done:
            return self._result(_OVER, 0.0, False)
        self._steps += 1
        known = self.accepts(action, self._admissible)
        if known is None:
            self._done = self._steps >= self._max_steps
            return self._result(self.unknown_action, 0.0, False)
        try:
            observation, reward, terminated, truncated, info = self._environment.step(known)
            self._see(observation, info)
            self._success = bool(terminated and self._read_info(info, self._keys.success))
            self._done = bool(terminated or truncated or self._steps >= self._max_steps)
            return self._result(self._observation, as_number(reward, "the reward"), True)
        except BrokenPromise as error:
            raise EnvError(f"{self._task}: at {known!r}: {error}.") from None
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(f"{self._task}: fails at {known!r}: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close the environment, once."""
        self._task = None
        if not self._closed:
            self._closed = True
            self._environment.close()

    def accepts(self, action: str, admissible: tuple[str, ...]) -> str | None:
        """The action to pass to the environment, or None if `action` is not admissible."""
        return match_action(action, admissible)

    def show(self, observation: Any, info: Mapping[str, Any]) -> str:
        """The observation as text for the agent."""
        if not isinstance(observation, str):
            raise EnvError(
                f"{self._task}: the observation is of type {type(observation).__name__}, not a string. Override `show`."
            )
        return observation

    def _see(self, observation: Any, info: Mapping[str, Any]) -> None:
        self._observation = self.show(observation, info)
        try:
            self._admissible = as_texts(
                self._read_info(info, self._keys.admissible), f"info[{self._keys.admissible!r}]"
            )
        except BrokenPromise as error:
            raise EnvError(f"{self._task}: {error}.") from None

    def _read_info(self, info: Mapping[str, Any], key: str) -> Any:
        if key not in info:
            raise EnvError(
                f"{self._task}: `info` has no {key!r} (it has {', '.join(map(str, info)) or 'nothing'}). Name the keys "
                "of this environment with `InfoKeys`, or add it in a wrapper."
            )
        return info[key]

    def _result(self, observation: str, reward: float, admissible: bool) -> StepResult:
        return StepResult(observation, self._admissible, reward, self._done, self._success, admissible)
