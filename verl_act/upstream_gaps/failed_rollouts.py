"""Gap: verl does not stop a run on a broken set-up. It replaces failed rollouts forever, and a validation without
results dies with "Received an empty list as keys."

The rollout processes post failures on a board. If only failures happen for a while, they leave a notice there, which
the trainer raises as an error before it requests the next replacement. A finished episode or a validation withdraws the
notice.

Upstream change it waits for: a bound on refills without a finished group (verl/trainer/ppo/v1/replay_buffer.py), and an
error of its own for a validation without a finished group (`PPOTrainer._validate`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import ray

from verl_act.errors import EnvError
from verl_act.upstream_gaps import wrap_when_imported

logger = logging.getLogger(__name__)

GROUPS = 16
"""Number of groups in a row that must fail, so that a few broken games do not stop a run."""

_NAME = "verl_act-failures"
_NOTHING_FINISHED = "empty list as keys"
"""TransferQueue's message if verl's validation requests the outputs of no episode."""


@wrap_when_imported("verl.trainer.ppo.v1.trainer_base:PPOTrainer._add_prompts_to_generate")
def stop_if_given_up(wrapped: Callable[..., int], _trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    if notice := JOB_BOARD.read()[1]:
        raise EnvError(notice)
    return wrapped(*args, **kwargs)


@wrap_when_imported("verl.trainer.ppo.v1.trainer_base:PPOTrainer._validate")
def explain_empty_validation(
    wrapped: Callable[..., Any], _trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    try:
        result = wrapped(*args, **kwargs)
    except ValueError as error:
        if _NOTHING_FINISHED in str(error) and (failure := JOB_BOARD.read()[0]):
            raise EnvError(
                "No episode of a validation batch finished, so there is nothing to report. Fix the cause and start "
                f"again; the last episode failed with {failure}"
            ) from error
        raise
    JOB_BOARD.withdraw()
    return result


class Failures:
    """The groups that have failed in this process since an episode last finished."""

    def __init__(self, board: LocalBoard | JobBoard) -> None:
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
        # Failing is quicker than playing: episodes in progress at the first failure may still finish.
        waiting = any(episode <= self._first for episode in self._playing)
        if len(self._groups) >= GROUPS and not waiting:
            notice = (
                f"{len(self._groups)} groups of episodes in a row have failed, and no episode has finished "
                f"meanwhile. Fix the cause and start again; the last failed with {failure}"
            )
            logger.error("%s", notice)
            self._has_notice = True
            self._groups.clear()  # if the notice is withdrawn, the count starts anew
        self._board.post(self._process, failure, notice)


class LocalBoard:
    """The board itself: the last failure, and the current notices by process."""

    def __init__(self, failure: str = "") -> None:
        self._failure = failure
        self._notices: dict[str, str] = {}

    def post(self, process: str, failure: str, notice: str | None) -> None:
        self._failure = failure
        if notice:
            self._notices[process] = notice

    def withdraw(self, process: str | None = None) -> None:
        """Withdraw the notice of `process`, or of all; the last failure stays."""
        for name in [process] if process else list(self._notices):
            self._notices.pop(name, None)

    def read(self) -> tuple[str, str]:
        """The last failure and the first notice, each empty if there is none."""
        return self._failure, next(iter(self._notices.values()), "")


_BoardActor: Any = ray.remote(LocalBoard)


class JobBoard:
    """The board of a Ray job, an actor. The first failure creates it, and it lives as long as its creator.

    No agent loop waits for it.
    """

    def __init__(self) -> None:
        self._made: list[Any] = []

    def post(self, process: str, failure: str, notice: str | None) -> None:
        board = self._find()
        if board is None:
            # Created with the failure: the trainer may read the board before the message below arrives.
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
