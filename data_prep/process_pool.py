"""Jobs on environments, in worker processes that may hang or die: each costs its own job and no other.

A worker is a process with a pipe of its own, so that none can block another. One that exceeds the time limit of a job,
or dies, is killed with all that it started, and replaced. Where it was killed from outside, as the kernel does when
memory runs out, its job is tried once more with no other worker running. All workers end with this process, however it
ends, and do not react to Ctrl-C themselves: this process ends them.
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
from functools import cached_property
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from verl_act.envs.base import PREPARE_SECONDS, Environment
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, DataError, EnvError
from verl_act.journal import SavedResults
from verl_act.options import Above0, Count, check_options
from verl_act.process import TASK_TIMEOUT, dies_with, kill_tree

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TICK = 1.0
_CLOSE_SECONDS = 5.0

Job = TypeVar("Job")
Result = TypeVar("Result")
Job_contra = TypeVar("Job_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


def check_workers(workers: Count, task_timeout: Above0 = TASK_TIMEOUT) -> None:
    """Raise `OptionError` for a number of processes or a time limit with which no work can be done."""
    check_options(check_workers, {"workers": workers, "task_timeout": task_timeout})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job has no result. `kind` is counted: "error", "timeout" or "process died"."""

    kind: str
    reason: str


class Worker(Protocol[Job_contra, Result_co]):
    """What does the jobs of one process. It is pickled and sent there before it has made an environment."""

    def prepare(self) -> None:
        """What may take minutes before the first job; the time limit of a job does not count it."""

    def __call__(self, job: Job_contra, /) -> Result_co:
        """The result of a job. Raises `EnvError`, or an error not of ours, where the environment fails at it."""
        ...

    def close(self) -> None:
        """End its environments, if there are any; the next job makes others."""


@dataclass
class Player(Generic[Job, Result]):
    """A worker that plays tasks with an environment, and with a fresh one for the proof that it replays."""

    env: str
    settings: Mapping[str, Any]

    @cached_property
    def environments(self) -> tuple[Environment, Environment]:
        spec = get_env(self.env)
        return spec.make(**self.settings), spec.make(**self.settings)

    def prepare(self) -> None:
        prepare_env(self.env, self.settings)

    def __call__(self, job: Job) -> Result:
        raise NotImplementedError

    def close(self) -> None:
        for environment in self.__dict__.pop("environments", ()):
            close_env(environment)


def prepare_env(env: str, settings: Mapping[str, Any]) -> None:
    """What `env` does in each process before its first episode (`EnvSpec.prepare`)."""
    if (prepare := get_env(env).prepare) is not None:
        prepare(**settings)


def close_env(environment: Environment) -> None:
    """Close it; what it raises is logged, for its episodes are over."""
    try:
        environment.close()
    except (Exception, SystemExit) as error:
        logger.warning("%s failed to close: %s", type(environment).__name__, failure_of(error).reason)


def failed(worker: Worker[Job, Result], error: BaseException) -> Failure:
    """`failure_of` an error at which `worker` has to begin anew, unless it is an `EnvError`."""
    failure = failure_of(error)
    if not isinstance(error, EnvError):  # a bug, so its author wants to know where; the state is unknown
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{last.filename}, line {last.lineno}, in {last.name}"
        logger.warning("A task is left out: %s (%s)", failure.reason, where)
        worker.close()
    return failure


def failure_of(error: BaseException) -> Failure:
    """The failure of an environment or expert that has raised `error`, of whatever type: a `PermissionError` is
    somebody's code too, for nothing of ours is written in a job. Raises `error` itself where it is a mistake of the
    user's (an `ActError`, but for `EnvError`), and `DataError` where a disk is full: all further tasks would fail.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        raise DataError(
            f"{error.filename or tempfile.gettempdir()}: could not be written: {error.strerror}. Free space there, and "
            "run the command again."
        ) from error
    if isinstance(error, EnvError):
        return Failure("error", str(error))
    if isinstance(error, ActError):
        raise error
    return Failure("error", f"{type(error).__name__}: {error}")


class RunJobs(Protocol[Job_contra, Result]):
    """A `map` over jobs, in order. It may be called again while an earlier call is not used up: new jobs come first.

    Results that are `saved` are not computed again, and new ones are saved as they come; failures are not.
    """

    def __call__(
        self, jobs: Iterable[Job_contra], saved: SavedResults[Result] | None = None, /
    ) -> Iterator[Result | Failure]: ...


@contextmanager
def process_pool(
    worker: Worker[Job, Result], workers: int, timeout: float = TASK_TIMEOUT
) -> Iterator[RunJobs[Job, Result]]:
    """A `map` of `worker` over that many processes; the results do not depend on how many there are.

    With 0 workers it runs in this process, where nothing can stop an environment that hangs: for environments that only
    this process knows (`register_env`), and to debug one. `timeout` is the seconds of each job.

    The map raises what a worker raises on purpose (an `ActError`, but for `EnvError`), and `EnvError` where no worker
    process starts.
    """
    check_workers(workers, timeout)
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
    prepared = False

    def result_of(number: int, job: Job, saved: SavedResults[Result] | None) -> Result | Failure:
        nonlocal prepared
        if saved is not None and (known := saved.get(number)) is not None:
            return known
        if not prepared:
            worker.prepare()
            prepared = True
        result = _attempt(worker, job)
        if saved is not None and not isinstance(result, Failure):
            saved.add(number, result)
        return result

    def run(jobs: Iterable[Job], saved: SavedResults[Result] | None = None, /) -> Iterator[Result | Failure]:
        return (result_of(number, job, saved) for number, job in enumerate(jobs))

    try:
        yield run
    finally:
        worker.close()


def _attempt(worker: Worker[Job, Result], job: Job) -> Result | Failure:
    """The result; what an environment raises is its failure, `SystemExit` too."""
    try:
        return worker(job)
    except (Exception, SystemExit) as error:
        return failed(worker, error)


class _Ready:
    """A worker process has prepared."""


class _Ended:
    """The pipe of a worker process has ended: it died."""


@dataclass(slots=True)
class _Ticket(Generic[Job]):
    """A job on its way."""

    number: int
    job: Job
    index: int
    saved: SavedResults[Any] | None
    alone: bool = False
    """Its worker was killed; it is tried again with no other running."""


class _Pool(Generic[Job, Result]):
    def __init__(self, worker: Worker[Job, Result], workers: int, timeout: float) -> None:
        self._worker, self._workers, self._timeout = worker, workers, timeout
        self._events: SimpleQueue[tuple[_Process, Any]] = SimpleQueue()
        self._processes: list[_Process] = []
        self._waiting: deque[_Ticket[Job]] = deque()
        self._alone: deque[_Ticket[Job]] = deque()
        self._results: dict[int, Result | Failure] = {}
        self._tickets = 0

    def map(self, jobs: Iterable[Job], saved: SavedResults[Result] | None = None, /) -> Iterator[Result | Failure]:
        known: list[Result | None] = []
        tickets: list[_Ticket[Job]] = []
        for index, job in enumerate(jobs):
            known.append(saved.get(index) if saved is not None else None)
            if known[-1] is None:
                tickets.append(_Ticket(self._tickets, job, index, saved))
                self._tickets += 1
        self._waiting.extendleft(reversed(tickets))
        waiting = iter(tickets)
        return (self._result(next(waiting).number) if result is None else result for result in known)

    def close(self) -> None:
        """Let the workers close their environments, in a few seconds; `kill` ends those that do not."""
        until = time.monotonic() + _CLOSE_SECONDS
        for process in self._processes:
            if process.ticket is None:
                process.close()
        for process in self._processes:
            if process.ticket is None:
                process.child.join(max(0.0, until - time.monotonic()))

    def kill(self) -> None:
        while self._processes:
            self._processes.pop().kill()

    def _result(self, number: int) -> Result | Failure:
        while number not in self._results:
            self._dispatch()
            self._wait()
        return self._results.pop(number)

    def _dispatch(self) -> None:
        """Give waiting jobs to workers; one that must be alone when all others have ended."""
        if self._alone:
            if not any(process.ticket for process in self._processes):
                self.kill()  # idle ones hold memory too
                self._give(self._alone.popleft())
            return
        while self._waiting and sum(process.ticket is not None for process in self._processes) < self._workers:
            self._give(self._waiting.popleft())

    def _give(self, ticket: _Ticket[Job]) -> None:
        process = next((process for process in self._processes if process.ticket is None), None)
        if process is None:
            process = _Process(self._worker, self._events, self._processes)
        process.give(ticket)

    def _wait(self) -> None:
        """Until a worker has something to say, or for a tick, after which time limits are looked at."""
        began = time.monotonic()
        with suppress(Empty):
            self._take(*self._events.get(timeout=_TICK))
            while True:
                self._take(*self._events.get_nowait())
        # Where this process was stopped meanwhile (Ctrl-Z), its workers were too: that is no time of theirs.
        passed = min(time.monotonic() - began, 2 * _TICK)
        for process in list(self._processes):
            process.seconds += passed
            if process.ticket is not None and process.seconds > (self._timeout if process.ready else PREPARE_SECONDS):
                self._lose(process, process.ticket, self._too_late(process))

    def _take(self, process: _Process, said: Any) -> None:
        ticket = process.ticket
        if process not in self._processes or ticket is None:
            return  # it was given up a moment ago
        if isinstance(said, Exception):  # on purpose, or a job cannot be pickled
            raise said
        if isinstance(said, _Ready):
            process.start_job()
        elif isinstance(said, _Ended):
            self._lose(process, ticket, self._death(process))
        else:
            process.ticket = None
            self._results[ticket.number] = said
            if ticket.saved is not None and not isinstance(said, Failure):
                ticket.saved.add(ticket.index, said)

    def _lose(self, process: _Process, ticket: _Ticket[Job], failure: Failure) -> None:
        """Replace a worker. Its job is retried where it was killed from outside, or else has failed."""
        killed = process.exit_code == -signal.SIGKILL
        self._processes.remove(process)
        process.kill()
        if killed and not ticket.alone:
            ticket.alone = True
            self._alone.append(ticket)
            return
        if not process.ready and not killed:
            raise EnvError(f"A worker process did not start: {failure.reason}. What it printed says why.")
        logger.warning("A task is left out: %s", failure.reason)
        self._results[ticket.number] = failure

    def _too_late(self, process: _Process) -> Failure:
        if process.exit_code is not None:  # a child of its own holds the pipe
            return self._death(process)
        if not process.ready:
            return Failure("timeout", f"not ready for its first task within {PREPARE_SECONDS:g} s")
        return Failure("timeout", f"not done within {self._timeout:g} s (--task-timeout)")

    def _death(self, process: _Process) -> Failure:
        process.child.join(_TICK)
        code = process.exit_code
        if code == -signal.SIGKILL:
            reason = (
                "its process was killed, and again with no other running. Most often memory has run out: it alone "
                "needs more than there is"
            )
        elif code is not None and code < 0:
            reason = f"its process crashed ({signal.Signals(-code).name})"
        else:
            reason = f"its process ended itself (exit status {code})"
        return Failure("process died", reason)


class _Process:
    """A worker process, seen from this one. A thread of its own talks to it, which a stopped process may block."""

    def __init__(
        self, worker: Worker[Any, Any], events: SimpleQueue[tuple[_Process, Any]], processes: list[_Process]
    ) -> None:
        """Start it and add it to `processes`."""
        self.ticket: _Ticket[Any] | None = None
        self.ready = False
        self.seconds = 0.0
        """Of its present job, or of its preparation."""
        self._jobs: SimpleQueue[_Ticket[Any] | None] = SimpleQueue()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.child = context.Process(target=_serve, args=(worker, theirs, os.getpid()))
        with _interrupts_blocked():
            self.child.start()
            processes.append(self)
        theirs.close()
        threading.Thread(target=self._talk, args=(ours, events), daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        return self.child.exitcode

    def give(self, ticket: _Ticket[Any]) -> None:
        """Its next job, which it begins when it is ready."""
        self.ticket = ticket
        self.seconds = 0.0
        if self.ready:
            self._jobs.put(ticket)

    def start_job(self) -> None:
        assert self.ticket is not None
        self.ready = True
        self.give(self.ticket)

    def close(self) -> None:
        """Tell it to end."""
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
                events.put((self, _Ended()))
            except Exception as error:
                events.put((self, error))


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started meanwhile begins with Ctrl-C blocked, until it ignores it."""
    resource_tracker.ensure_running()  # or the first process starts it, which unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(worker: Worker[Job, Result], connection: Connection, parent: int) -> None:
    """What a worker process does."""
    dies_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        worker.prepare()
        connection.send(_Ready())
        while True:
            connection.send(_attempt(worker, connection.recv()))
    except EOFError:  # no more jobs
        worker.close()
    except ActError as error:
        connection.send(error)
