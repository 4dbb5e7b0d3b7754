"""Where environments are called: what somebody's code answers becomes what the protocol says, or an `EnvError`.

`EnvSpec.make` puts every environment into a `CheckedEnvironment`. What has one meaning is converted, such as the
scalars and arrays of NumPy that Gymnasium's environments answer with; anything else is refused with the task, the
promise that is broken and the value. What lies behind (rewards, journals, tables) gets plain Python values.
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
    """Passes every call on to `environment` and checks the answers.

    It passes for the environment, as proxies do: `isinstance` sees the class behind it, and attributes are that one's.
    """

    def __init__(self, environment: Environment, name: str) -> None:
        """`name`: of the environment, for messages. Raises `EnvError` where a method is missing."""
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
        if name == "_unchecked":  # asked for before `__init__`
            raise AttributeError(name)
        value = getattr(self._unchecked, name)
        if name == "plan_length":
            return self._plan_length
        return partial(self._call, name) if name in ("snapshot", "restore", "release") else value

    def reset(self, task: Task) -> Observation:
        """Start `task`. Raises `EnvError` where the answer is no `Observation` of texts."""
        self._task_played = task
        shown = self._call("reset", task)
        try:
            if not isinstance(shown, Observation):
                raise BrokenPromise("reset must return an Observation", shown)
            return Observation(
                as_text(shown.goal, "goal"),
                as_text(shown.observation, "observation"),
                as_texts(shown.admissible_actions, "admissible_actions"),
            )
        except BrokenPromise as error:
            raise self._named(error) from None

    def step(self, action: str) -> StepResult:
        """Take `action`. Raises `EnvError` where the answer is no `StepResult` of texts, flags and a finite reward."""
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
        """Free what the engine holds."""
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
    """The `make` of an environment, with its signature, that puts what is made into a `CheckedEnvironment`."""

    name: str
    make: Callable[..., Environment]

    @property
    def __wrapped__(self) -> Callable[..., Environment]:  # for `inspect.signature`
        return self.make

    def __call__(self, *arguments: Any, **settings: Any) -> Environment:
        return CheckedEnvironment(self.make(*arguments, **settings), self.name)


class BrokenPromise(EnvError):
    """A value that is not what the protocol says."""

    def __init__(self, promise: str, value: Any) -> None:
        super().__init__(f"{promise}, not {brief(value)} of type {type(value).__name__}")


def as_text(value: Any, name: str) -> str:
    """`value` as a plain text. Half a surrogate pair, as of an action that is quoted, is none to tokenizers and files:
    it becomes U+FFFD. Raises `BrokenPromise`, with `name`, for a value that is no text.
    """
    if type(value) is not str:
        plain = _plain(value)
        if not isinstance(plain, str):
            raise BrokenPromise(f"{name} must be a text", value)
        value = str.__str__(plain)
    if value.isascii() or _is_unicode(value):
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def as_texts(values: Any, name: str) -> tuple[str, ...]:
    """`values`, a sequence or a one-dimensional array, as a tuple of plain texts. Raises as `as_text` does."""
    if type(values) is not tuple:
        listed = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(listed, Sequence) or isinstance(listed, str | bytes | bytearray):
            raise BrokenPromise(f"{name} must be a tuple of texts, and () where nothing is listed", values)
        values = tuple(listed)
    if not {*map(type, values)} <= _STR:
        values = tuple([as_text(value, f"each of {name}") for value in values])
    whole = "".join(values)
    if not whole.isascii() and not _is_unicode(whole):
        # Not replaced: in other words the environment would not know its action.
        raise BrokenPromise(f"each of {name} must be Unicode", next(text for text in values if not _is_unicode(text)))
    return values


def as_number(value: Any, name: str) -> float:
    """`value` as a float. Raises `BrokenPromise` for a text, for what is not one finite number, and for one that sums
    and squares would make infinite.
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
        value = number
    if not abs(value) < _LARGEST:  # nor NaN
        raise BrokenPromise(promise, value)
    return value


def as_flag(value: Any, name: str) -> bool:
    """`value`, a truth value, 0 or 1, as a bool. Raises `BrokenPromise` for anything else."""
    if type(value) is bool:
        return value
    plain = _plain(value)
    if not isinstance(plain, bool | int | float) or plain not in (0, 1):
        raise BrokenPromise(f"{name} must be true or false", value)
    return bool(plain)


def _plain(value: Any) -> Any:
    """The Python value of a scalar of NumPy or of a tensor of one value; any other value as it is."""
    item = getattr(value, "item", None)
    try:
        return item() if callable(item) else value
    except Exception:  # of several values, or another thing of that name
        return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
