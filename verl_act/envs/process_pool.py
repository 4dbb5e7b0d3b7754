"""A pool of worker processes for environments, which may hang or crash: only the job at hand is lost.

Each worker is a process with its own pipe, so no worker can block another. A worker that exceeds the time limit of a
job, or dies, is killed together with its child processes and replaced. If it was killed from outside (for example by
the kernel, out of memory), its job is retried once while no other worker runs. All workers end when this process ends.
They ignore Ctrl-C; this process stops them.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache, cached_property
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from verl_act.envs.base import PREPARE_SECONDS, Environment
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, DataError, EnvError
from verl_act.journal import SavedResults
from verl_act.process import TASK_TIMEOUT, dies_with, kill_tree
from verl_act.progress import route_messages

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TICK = 1.0
_CLOSE_SECONDS = 5.0

Job = TypeVar("Job")
Result = TypeVar("Result")
Job_contra = TypeVar("Job_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job has no result. `kind` is "error", "timeout" or "process died"; the kinds are counted."""

    kind: str
    reason: str


class Worker(Protocol[Job_contra, Result_co]):
    """Runs the jobs of one process. It is pickled and sent to that process before it creates an environment."""

    def prepare(self) -> None:
        """Slow set-up before the first job (minutes). It does not count towards the time limit of a job."""
        return

    def __call__(self, job: Job_contra, /) -> Result_co:
        """The result of `job`, never None. Raises `EnvError`, or a third-party error, if the environment fails."""
        ...

    def close(self) -> None:
        """Close the environments, if any; the next job creates new ones."""


@dataclass
class Player(Generic[Job, Result]):
    """A worker with two environments: one plays the task, a fresh one checks that the episode replays."""

    env: str
    settings: Mapping[str, Any]

    @cached_property
    def environments(self) -> tuple[Environment, Environment]:
        spec = get_env(self.env)
        return spec.make(**self.settings), spec.make(**self.settings)

    def prepare(self) -> None:
        get_env(self.env).prepare(**self.settings)

    def __call__(self, job: Job) -> Result:
        raise NotImplementedError

    def close(self) -> None:
        for environment in self.__dict__.pop("environments", ()):
            close_env(environment)


def close_env(environment: Environment) -> None:
    """Close `environment`. Errors are only logged: its episodes are already finished."""
    try:
        environment.close()
    except (Exception, SystemExit) as error:
        logger.warning("%s failed to close: %s", type(environment).__name__, failure_of(error).reason)


def failed(worker: Worker[Job, Result], error: BaseException) -> Failure:
    """The `Failure` for `error`. Closes `worker` unless it is an `EnvError`, since its state is unknown."""
    failure = failure_of(error)
    if not isinstance(error, EnvError):  # a bug in the environment: log where
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{last.filename}, line {last.lineno}, in {last.name}"
        logger.warning("Skipped a task: %s (%s)", failure.reason, where)
        worker.close()
    return failure


def failure_of(error: BaseException) -> Failure:
    """The `Failure` for an `error` of any type that an environment or expert raised.

    This includes `PermissionError` and the like, because jobs write no files of verl_act. Raises `error` itself if the
    user has to fix it (an `ActError` other than `EnvError`), and `DataError` if the disk is full, since all further
    tasks would fail too.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        raise DataError(
            f"{error.filename or tempfile.gettempdir()}: could not be written: {error.strerror}. Free disk space and "
            "run the command again."
        ) from error
    if isinstance(error, EnvError):
        return Failure("error", str(error))
    if isinstance(error, ActError):
        raise error
    return Failure("error", f"{type(error).__name__}: {error}")


class RunJobs(Protocol[Job_contra, Result]):
    """An ordered `map` over jobs. It may be called again before an earlier call is exhausted: new jobs run first.

    Results in `saved` are not computed again. New results are added to it as they arrive; failures are not.
    """

    def __call__(
        self, jobs: Iterable[Job_contra], saved: SavedResults[Result] | None = None, /
    ) -> Iterator[Result | Failure]: ...


@contextmanager
def process_pool(
    worker: Worker[Job, Result], workers: int, timeout: float = TASK_TIMEOUT
) -> Iterator[RunJobs[Job, Result]]:
    """Yield a `map` that runs `worker` in `workers` processes. The results do not depend on the number of processes.

    With 0 workers, jobs run in this process, and an environment that hangs is not stopped. Use this for debugging and
    for environments that only this process knows (`register_env`). `timeout` is the time limit of one job in seconds.

    The map raises errors that the user has to fix (an `ActError` other than `EnvError`), and `EnvError` if a worker
    process does not start.
    """
    if workers == 0:
        with _in_this_process(worker) as run:
            yield run
        return
    pool = _Pool(worker, workers, timeout)
    try:
        yield pool.map
        pool.close()
    finally:
        pool.kill()


@contextmanager
def _in_this_process(worker: Worker[Job, Result]) -> Iterator[RunJobs[Job, Result]]:
    prepare = cache(worker.prepare)  # once, and only if there is a job

    def run(jobs: Iterable[Job], saved: SavedResults[Result] | None = None, /) -> Iterator[Result | Failure]:
        for index, job in enumerate(jobs):
            result: Result | Failure | None = None if saved is None else saved.get(index)
            if result is None:
                prepare()
                result = _attempt(worker, job)
                if saved is not None and not isinstance(result, Failure):
                    saved.add(index, result)
            yield result

    try:
        yield run
    finally:
        worker.close()


def _attempt(worker: Worker[Job, Result], job: Job) -> Result | Failure:
    """Run `job`. Everything that the environment raises, even `SystemExit`, becomes a `Failure`."""
    try:
        return worker(job)
    except (Exception, SystemExit) as error:
        return failed(worker, error)


class _Message(Enum):
    """What a worker process tells besides results."""

    READY = auto()
    """It has finished its set-up."""
    ENDED = auto()
    """Its pipe was closed, because it died."""


@dataclass(slots=True)
class _Ticket(Generic[Job]):
    """A submitted job."""

    job: Job
    index: int
    """Position of the job in its call of `map`."""
    saved: SavedResults[Any] | None
    alone: bool = False
    """Its worker was killed from outside, so it is retried while no other worker runs."""
    result: Any = None
    """None until it is known."""


class _Pool(Generic[Job, Result]):
    def __init__(self, worker: Worker[Job, Result], workers: int, timeout: float) -> None:
        self._worker, self._workers, self._timeout = worker, workers, timeout
        self._events: SimpleQueue[tuple[_Process, Any]] = SimpleQueue()
        self._processes: list[_Process] = []
        self._waiting: deque[_Ticket[Job]] = deque()
        self._alone: deque[_Ticket[Job]] = deque()

    def map(self, jobs: Iterable[Job], saved: SavedResults[Result] | None = None, /) -> Iterator[Result | Failure]:
        tickets = [
            _Ticket(job, index, saved, result=None if saved is None else saved.get(index))
            for index, job in enumerate(jobs)
        ]
        self._waiting.extendleft(ticket for ticket in reversed(tickets) if ticket.result is None)
        return map(self._result, tickets)

    def close(self) -> None:
        """Give the workers a few seconds to close their environments; `kill` stops those that do not."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        for process in self._processes:
            if process.ticket is None:
                process.close()
        for process in self._processes:
            if process.ticket is None:
                process.child.join(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        while self._processes:
            self._processes.pop().kill()

    def _result(self, ticket: _Ticket[Job]) -> Result | Failure:
        while ticket.result is None:
            self._dispatch()
            self._wait()
        result: Result | Failure = ticket.result
        ticket.result = None  # frees its memory
        return result

    def _dispatch(self) -> None:
        """Assign waiting jobs to workers. A job that must run alone starts when no other job is running."""
        if self._alone:
            if not any(process.ticket for process in self._processes):
                self.kill()  # idle workers use memory too
                self._assign(self._alone.popleft())
            return
        while self._waiting and sum(process.ticket is not None for process in self._processes) < self._workers:
            self._assign(self._waiting.popleft())

    def _assign(self, ticket: _Ticket[Job]) -> None:
        idle = next((process for process in self._processes if process.ticket is None), None)
        (idle or _Process(self._worker, self._events, self._processes)).assign(ticket)

    def _wait(self) -> None:
        """Handle messages from workers, waiting one tick for the first; then check the time limits."""
        start = time.monotonic()
        with suppress(Empty):
            self._handle(*self._events.get(timeout=_TICK))
            while True:
                self._handle(*self._events.get_nowait())
        # If this process was suspended meanwhile (Ctrl-Z), so were its workers: do not count that time.
        elapsed = min(time.monotonic() - start, 2 * _TICK)
        for process in list(self._processes):
            process.seconds += elapsed
            if process.ticket is not None and process.seconds > (self._timeout if process.ready else PREPARE_SECONDS):
                self._lose(process, process.ticket, self._too_late(process))

    def _handle(self, process: _Process, message: Any) -> None:
        ticket = process.ticket
        if process not in self._processes or ticket is None:
            return  # this worker has just been replaced
        if isinstance(message, Exception):  # an error for the user, or a job that cannot be pickled
            raise message
        if message is _Message.READY:
            process.ready = True
            process.assign(ticket)
        elif message is _Message.ENDED:
            self._lose(process, ticket, self._death(process))
        else:
            process.ticket = None
            ticket.result = message
            if ticket.saved is not None and not isinstance(message, Failure):
                ticket.saved.add(ticket.index, message)

    def _lose(self, process: _Process, ticket: _Ticket[Job], failure: Failure) -> None:
        """Remove a worker. Its job is retried if the worker was killed from outside; otherwise the job has failed."""
        killed = process.child.exitcode == -signal.SIGKILL
        self._processes.remove(process)
        process.kill()
        if killed and not ticket.alone:
            ticket.alone = True
            self._alone.append(ticket)
            return
        if not process.ready and not killed:
            raise EnvError(f"A worker process did not start: {failure.reason}. See its output above.")
        logger.warning("Skipped a task: %s", failure.reason)
        ticket.result = failure

    def _too_late(self, process: _Process) -> Failure:
        if process.child.exitcode is not None:  # a child process still holds the pipe
            return self._death(process)
        if not process.ready:
            return Failure("timeout", f"not ready for its first task within {PREPARE_SECONDS:g} s")
        return Failure("timeout", f"not done within {self._timeout:g} s (--task-timeout)")

    def _death(self, process: _Process) -> Failure:
        process.child.join(_TICK)
        code = process.child.exitcode
        if code == -signal.SIGKILL:
            reason = (
                "its process was killed, and again with no other worker running. Most likely this task needs more "
                "memory than the machine has"
            )
        elif code is not None and code < 0:
            reason = f"its process crashed ({signal.Signals(-code).name})"
        else:
            reason = f"its process ended itself (exit status {code})"
        return Failure("process died", reason)


class _Process:
    """The parent's handle of a worker process. A thread talks to it, because a suspended process blocks the pipe."""

    def __init__(
        self, worker: Worker[Any, Any], events: SimpleQueue[tuple[_Process, Any]], processes: list[_Process]
    ) -> None:
        """Start the process and add it to `processes`."""
        self.ticket: _Ticket[Any] | None = None
        self.ready = False
        self.seconds = 0.0
        """Time spent on the current job, or on the set-up."""
        self._jobs: SimpleQueue[_Ticket[Any] | None] = SimpleQueue()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.child = context.Process(target=_serve, args=(worker, theirs, os.getpid()))
        with _interrupts_blocked():
            self.child.start()
            processes.append(self)
        theirs.close()
        threading.Thread(target=self._talk, args=(ours, events), daemon=True).start()

    def assign(self, ticket: _Ticket[Any]) -> None:
        """Set the next job, which starts once the process is ready."""
        self.ticket = ticket
        self.seconds = 0.0
        if self.ready:
            self._jobs.put(ticket)

    def close(self) -> None:
        """Ask the process to exit."""
        self._jobs.put(None)

    def kill(self) -> None:
        if self.child.is_alive():
            assert self.child.pid is not None
            kill_tree(self.child.pid)
        self.child.join(_CLOSE_SECONDS)
        self._jobs.put(None)

    def _talk(self, connection: Connection, events: SimpleQueue[tuple[_Process, Any]]) -> None:
        with connection:
            try:
                events.put((self, connection.recv()))
                while (ticket := self._jobs.get()) is not None:
                    connection.send(ticket.job)
                    events.put((self, connection.recv()))
            except (EOFError, OSError):
                events.put((self, _Message.ENDED))
            except Exception as error:
                events.put((self, error))


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started in this context begin with Ctrl-C blocked, so it cannot hit them before they ignore it."""
    resource_tracker.ensure_running()  # otherwise the first process starts it, which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(worker: Worker[Job, Result], connection: Connection, parent: int) -> None:
    """The main loop of a worker process."""
    dies_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    route_messages()
    try:
        worker.prepare()
        connection.send(_Message.READY)
        while True:
            connection.send(_attempt(worker, connection.recv()))
    except EOFError:  # no more jobs
        worker.close()
    except ActError as error:
        connection.send(error)
