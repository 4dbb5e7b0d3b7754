"""Checks environments at the boundary: results of third-party code become what the protocol says, or an `EnvError`.

`EnvSpec.make` wraps every environment in a `CheckedEnvironment`. Unambiguous values are converted, such as the NumPy
scalars and arrays of Gymnasium environments. Anything else is refused with the task, the broken rule and the value.
Rewards, journals and tables therefore get plain Python values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from reprlib import repr as brief  # a value may be of any length
from typing import Any

from verl_act.envs.base import Environment, Observation, StepResult, Task
from verl_act.errors import EnvError

_STR = {str}
_LARGEST = 1e100


class CheckedEnvironment:
    """Forwards every call to `environment` and checks the results.

    A transparent proxy: `isinstance` sees the wrapped class, and attributes are those of the wrapped object.
    """

    def __init__(self, environment: Environment, name: str) -> None:
        """`name`: the environment's name, for messages. Raises `EnvError` if a method is missing."""
        for method in ("reset", "step", "close"):
            if not callable(getattr(environment, method, None)):
                raise EnvError(
                    f"Environment {name!r}: `make` must return an object with reset, step and close, not "
                    f"{brief(environment)}."
                )
        self._unchecked = environment
        self._env_name = name
        self._task_played: Task | None = None

    @property  # type: ignore[misc]  # writable in `object`
    def __class__(self) -> type:
        """Read by `isinstance`."""
        return self._unchecked.__class__

    def __getattr__(self, name: str) -> Any:
        if name == "_unchecked":  # read before `__init__`
            raise AttributeError(name)
        value = getattr(self._unchecked, name)
        if name == "plan_length":
            return self._plan_length
        return partial(self._call, name) if name in ("snapshot", "restore", "release") else value

    def reset(self, task: Task) -> Observation:
        """Start `task`. Raises `EnvError` if the result is not an `Observation` of strings."""
        self._task_played = task
        observation = self._call("reset", task)
        try:
            if not isinstance(observation, Observation):
                raise BrokenPromise("reset must return an Observation", observation)
            return Observation(
                as_text(observation.goal, "goal"),
                as_text(observation.observation, "observation"),
                as_texts(observation.admissible_actions, "admissible_actions"),
            )
        except BrokenPromise as error:
            raise self._named(error) from None

    def step(self, action: str) -> StepResult:
        """Take `action`. Raises `EnvError` if the result is not a valid `StepResult`."""
        result = self._call("step", action)
        try:
            if not isinstance(result, StepResult):
                raise BrokenPromise("step must return a StepResult", result)
            return StepResult(
                as_text(result.observation, "observation"),
                as_texts(result.admissible_actions, "admissible_actions"),
                as_number(result.reward, "reward"),
                as_flag(result.done, "done"),
                as_flag(result.success, "success"),
                as_flag(result.admissible, "admissible"),
            )
        except BrokenPromise as error:
            raise self._named(error) from None

    def close(self) -> None:
        self._call("close")

    def _plan_length(self) -> int | None:
        length = self._call("plan_length")
        try:
            return None if length is None else operator.index(length)
        except TypeError:
            raise self._named(BrokenPromise("plan_length must return a whole number or None", length)) from None

    def _call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._unchecked, method)(*arguments)

    def _named(self, error: BrokenPromise) -> EnvError:
        return EnvError(
            f"{self._task_played}: environment {self._env_name!r} breaks its contract: {error}. "
            "`verl_act.envs.contract` checks an environment; `GymnasiumTextEnvironment` adapts one of Gymnasium."
        )


@dataclass(frozen=True)
class CheckedMake:
    """Wraps the `make` of an environment, keeping its signature, to return a `CheckedEnvironment`."""

    name: str
    make: Callable[..., Environment]

    @property
    def __wrapped__(self) -> Callable[..., Environment]:  # for `inspect.signature`
        return self.make

    def __call__(self, *arguments: Any, **settings: Any) -> Environment:
        return CheckedEnvironment(self.make(*arguments, **settings), self.name)


class BrokenPromise(EnvError):
    """A value that breaks the protocol."""

    def __init__(self, promise: str, value: Any) -> None:
        super().__init__(f"{promise}, not {brief(value)} of type {type(value).__name__}")


def as_text(value: Any, name: str) -> str:
    """`value` as a plain string. Lone surrogates, such as of a quoted action, become U+FFFD, because tokenizers and
    files cannot encode them. Raises `BrokenPromise`, with `name`, for a value that is not a string.
    """
    if type(value) is not str:
        plain = _plain(value)
        if not isinstance(plain, str):
            raise BrokenPromise(f"{name} must be a string", value)
        value = str.__str__(plain)
    text: str = value
    if text.isascii() or _is_unicode(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def as_texts(values: Any, name: str) -> tuple[str, ...]:
    """`values`, a sequence or a one-dimensional array, as a tuple of plain strings. Raises as `as_text` does."""
    if type(values) is not tuple:
        listed = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(listed, Sequence) or isinstance(listed, str | bytes | bytearray):
            raise BrokenPromise(f"{name} must be a tuple of strings, () where nothing is listed", values)
        values = tuple(listed)
    texts: tuple[str, ...] = values
    if not {*map(type, values)} <= _STR:
        texts = tuple([as_text(value, f"each of {name}") for value in values])
    joined = "".join(texts)
    if not joined.isascii() and not _is_unicode(joined):
        # Not replaced: the environment would not recognize its own action in another spelling.
        raise BrokenPromise(f"each of {name} must be Unicode", next(text for text in texts if not _is_unicode(text)))
    return texts


def as_number(value: Any, name: str) -> float:
    """`value` as a float. Raises `BrokenPromise` unless it is one finite number, small enough that sums and squares
    stay finite.
    """
    promise = f"{name} must be a finite number, below {_LARGEST:g}"
    if type(value) is not float:
        plain = _plain(value)
        if plain is None or isinstance(plain, str | bytes | bytearray):
            raise BrokenPromise(promise, value)
        try:
            number = float(plain)
        except Exception:  # whatever that object's conversion raises
            raise BrokenPromise(promise, value) from None
    else:
        number = value
    if not abs(number) < _LARGEST:  # nor NaN
        raise BrokenPromise(promise, value)
    return number


def as_flag(value: Any, name: str) -> bool:
    """`value`, a truth value, 0 or 1, as a bool. Raises `BrokenPromise` for anything else."""
    if type(value) is bool:
        return value
    plain = _plain(value)
    if not isinstance(plain, bool | int | float) or plain not in (0, 1):
        raise BrokenPromise(f"{name} must be true or false", value)
    return bool(plain)


def _plain(value: Any) -> Any:
    """The Python value of a NumPy scalar or one-element tensor; any other value unchanged."""
    item = getattr(value, "item", None)
    try:
        return item() if callable(item) else value
    except Exception:  # several values, or an unrelated `item`
        return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
