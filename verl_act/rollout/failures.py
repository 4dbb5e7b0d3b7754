"""Gap: verl replaces failed rollouts for as long as they fail: a run on a broken set-up takes no step and never ends.

The processes that play count what fails; when nothing else has happened for a while, they leave a notice, and the
trainer, about to ask for the next replacement, raises it as an error.

Upstream change it waits for: a bound on refills without a finished group (verl/trainer/ppo/v1/replay_buffer.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import ray
import wrapt

from verl_act.errors import EnvError

logger = logging.getLogger(__name__)

GROUPS = 16
"""So many groups of one task must fail in a row: a few broken games do not end a run."""

_NAME = "verl_act-given-up"


def close_gap(module: ModuleType) -> None:
    """Let the trainer look for a notice; `module` is verl.trainer.ppo.v1.trainer_base, just imported."""

    def unless_given_up(wrapped: Callable[..., int], trainer: Any, args: tuple, kwargs: dict) -> int:
        raise_notice()
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "PPOTrainer._add_prompts_to_generate", unless_given_up)


def raise_notice() -> None:
    """Raise `EnvError` where a process of this Ray job has given up."""
    try:
        notice = ray.get_actor(_NAME)
    except ValueError:
        return
    raise EnvError(ray.get(notice.read.remote()))


class Failures:
    """The groups that have failed in this process since an episode last came to its end."""

    def __init__(self, give_up: Callable[[str], None]) -> None:
        self._give_up = give_up
        self._begun = 0
        self._playing: set[int] = set()
        self._groups: set[str] = set()
        self._first = 0

    @contextmanager
    def watch(self, group: str) -> Iterator[None]:
        """Around one episode of `group`."""
        self._begun += 1
        number = self._begun
        self._playing.add(number)
        try:
            yield
            self._groups.clear()
        except Exception as error:
            self._playing.remove(number)
            self._failed(group, error)
            raise
        finally:
            self._playing.discard(number)

    def _failed(self, group: str, error: Exception) -> None:
        if not self._groups:
            self._first = self._begun
        self._groups.add(group)
        # Failing is quicker than playing: what was under way at the first failure may still come to its end.
        waiting = any(number <= self._first for number in self._playing)
        if len(self._groups) >= GROUPS and not waiting:
            self._give_up(
                f"{len(self._groups)} groups of episodes in a row have failed, and no episode has come to its end "
                f"meanwhile. Mend the cause and start again; the last failed with {type(error).__name__}: {error}"
            )


class _Notice:
    """Where all processes of a Ray job find it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self) -> str:
        return self._text


_NoticeActor: Any = ray.remote(_Notice)
_LEFT: list[Any] = []
"""A notice lasts as long as who has left it."""


def leave_notice(text: str) -> None:
    """Log why this process gives up, and tell the trainer; the first notice of a job stays."""
    if not _LEFT:
        logger.error("%s", text)
        _LEFT.append(_NoticeActor.options(name=_NAME, get_if_exists=True, num_cpus=0).remote(text))


FAILURES = Failures(leave_notice)
