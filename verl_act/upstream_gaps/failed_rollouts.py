"""Gap: verl does not end a run on a broken set-up with its cause. It replaces failed rollouts for as long as they fail,
and dies in a validation without a result of "Received an empty list as keys."

The processes that play post what fails on a board. When nothing else has happened for a while, they leave a notice
there, which the trainer, about to ask for the next replacement, raises as an error. An episode that comes to its end,
or a validation, withdraws it.

Upstream change it waits for: a bound on refills without a finished group (verl/trainer/ppo/v1/replay_buffer.py), and an
error of its own for a validation without a finished group (`PPOTrainer._validate`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol
from uuid import uuid4

import ray
import wrapt

from verl_act.errors import EnvError

logger = logging.getLogger(__name__)

GROUPS = 16
"""So many groups of one task must fail in a row: a few broken games do not end a run."""

_NAME = "verl_act-failures"
_NOTHING_FINISHED = "empty list as keys"
"""What TransferQueue says when verl's validation asks it for the outputs of no episode."""


def close_gap(module: ModuleType) -> None:
    """Let the trainer look at the board; `module` is verl.trainer.ppo.v1.trainer_base, just imported."""

    def unless_given_up(
        wrapped: Callable[..., int], trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int:
        raise_notice()
        return wrapped(*args, **kwargs)

    def or_say_why(wrapped: Callable[..., Any], trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            result = wrapped(*args, **kwargs)
        except ValueError as error:
            if _NOTHING_FINISHED in str(error):
                raise_last_failure()
            raise
        JOB_BOARD.withdraw()
        return result

    wrapt.wrap_function_wrapper(module, "PPOTrainer._add_prompts_to_generate", unless_given_up)
    wrapt.wrap_function_wrapper(module, "PPOTrainer._validate", or_say_why)


def raise_notice() -> None:
    """Raise `EnvError` where a process of this Ray job has given up."""
    notice = JOB_BOARD.read()[1]
    if notice:
        raise EnvError(notice)


def raise_last_failure() -> None:
    """Raise `EnvError` where an episode of this Ray job has failed."""
    failure = JOB_BOARD.read()[0]
    if failure:
        raise EnvError(
            "No episode of a validation batch has come to its end, so there is nothing to report. Mend the cause and "
            f"start again; the last failed with {failure}"
        )


class Board(Protocol):
    """Where a process says what fails, and takes its notice back."""

    def post(self, process: str, failure: str, notice: str | None) -> None: ...

    def withdraw(self, process: str | None = None) -> None: ...


class Failures:
    """The groups that have failed in this process since an episode last came to its end."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._process = uuid4().hex
        self._has_notice = False
        self._begun = 0
        self._playing: set[int] = set()
        self._groups: set[str] = set()
        self._first = 0

    @contextmanager
    def watch(self, group: str) -> Iterator[None]:
        """Around one episode of `group`."""
        self._begun += 1
        episode = self._begun
        self._playing.add(episode)
        try:
            yield
            self._succeeded()
        except Exception as error:
            self._playing.remove(episode)
            self._failed(group, error)
            raise
        finally:
            self._playing.discard(episode)

    def _succeeded(self) -> None:
        self._groups.clear()
        if self._has_notice:
            self._board.withdraw(self._process)
            self._has_notice = False

    def _failed(self, group: str, error: Exception) -> None:
        if not self._groups:
            self._first = self._begun
        self._groups.add(group)
        failure, notice = f"{type(error).__name__}: {error}", None
        # Failing is quicker than playing: what was under way at the first failure may still come to its end.
        waiting = any(episode <= self._first for episode in self._playing)
        if len(self._groups) >= GROUPS and not waiting:
            notice = (
                f"{len(self._groups)} groups of episodes in a row have failed, and no episode has come to its end "
                f"meanwhile. Mend the cause and start again; the last failed with {failure}"
            )
            logger.error("%s", notice)
            self._has_notice = True
            self._groups.clear()  # should the notice be withdrawn, so many must fail anew
        self._board.post(self._process, failure, notice)


class LocalBoard:
    """The board itself: the last failure, and the notices that stand, by process."""

    def __init__(self, failure: str = "") -> None:
        self._failure = failure
        self._notices: dict[str, str] = {}

    def post(self, process: str, failure: str, notice: str | None) -> None:
        self._failure = failure
        if notice:
            self._notices[process] = notice

    def withdraw(self, process: str | None = None) -> None:
        """Take back the notice of `process`, or of all; the failure stays what it is."""
        for name in [process] if process else list(self._notices):
            self._notices.pop(name, None)

    def read(self) -> tuple[str, str]:
        """The last failure and the first notice, each empty where there is none."""
        return self._failure, next(iter(self._notices.values()), "")


_BoardActor: Any = ray.remote(LocalBoard)


class JobBoard:
    """The one board of a Ray job, an actor. It comes with the first failure and lasts as long as who made it. No agent
    loop waits for it.
    """

    def __init__(self) -> None:
        self._made: list[Any] = []

    def post(self, process: str, failure: str, notice: str | None) -> None:
        board = self._find()
        if board is None:
            # With the failure from its start: the trainer, which hears of it another way, may read before the message.
            board = _BoardActor.options(name=_NAME, get_if_exists=True, num_cpus=0).remote(failure)
            self._made.append(board)
        board.post.remote(process, failure, notice)

    def withdraw(self, process: str | None = None) -> None:
        board = self._find()
        if board is not None:
            board.withdraw.remote(process)

    def read(self) -> tuple[str, str]:
        board = self._find()
        return ("", "") if board is None else ray.get(board.read.remote())

    def _find(self) -> Any:
        try:
            return ray.get_actor(_NAME)
        except ValueError:
            return None


JOB_BOARD = JobBoard()
FAILURES = Failures(JOB_BOARD)
