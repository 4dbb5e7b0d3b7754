"""The Java engine behind ScienceWorld: one JVM per process, which serves all its games.

The engine was written for one game per JVM: its random numbers, object ids and simplifications are global, and the
order of its sets depends on memory addresses. Here each game has its own globals, which are set before every call, and
the JVM gives every object the same hash. A transcript therefore depends only on its task and actions, not on other
games of the JVM.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakSet

from py4j.java_gateway import GatewayClient, GatewayParameters, JavaGateway, find_jar_path
from py4j.protocol import Py4JJavaError, Py4JNetworkError
from scienceworld.constants import BASEPATH, JAR_PATH
from scienceworld.version import __version__ as _INSTALLED

from verl_act.envs.base import NoRoom
from verl_act.envs.scienceworld.variations import VERSION
from verl_act.errors import ConfigError, EnvError

logger = logging.getLogger(__name__)

HEAP_MB = 1024
MOST_GAMES = 70
"""A game takes 10 to 11 MB of the heap. From about 80 on, the JVM spends its time on garbage collection."""
_REMEDY_ROOM = (
    "Play fewer at a time in one process: give more `actors`, in the settings of episodes (data.act.episode.actors) or "
    "of evaluation (evaluate.actors)."
)
_OUT_OF_MEMORY = 3
"""The exit status of a JVM that ran out of heap."""
_OPTIONS = (
    # The engine's lists have the order of hash sets whose members use the default hash.
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
    # With the default collector and heap, the JVM grows to gigabytes.
    "-XX:+UseSerialGC",
    f"-Xmx{HEAP_MB}m",
    "-XX:+ExitOnOutOfMemoryError",
    f"-XX:ErrorFile={os.path.join(tempfile.gettempdir(), 'hs_err_pid%p.log')}",
)
_START_SECONDS = 60.0
CALL_SECONDS = 120.0
"""More than any call takes: the longest, a gold path, takes about ten seconds."""


class EngineLost(EnvError):
    """The JVM died or did not answer in time, and its games are lost. The next `engine()` starts a new one."""


@dataclass(slots=True)
class Globals:
    """The engine's global state, here one for each game. Made by `ScienceWorldEngine.globals`."""

    random: Any
    """The game's `java.util.Random`."""
    aside: Any
    """Another one, for queries that must not change the game's random numbers."""
    last_id: int = 0
    """The last object id in use."""
    simplifications: str = ""


class ScienceWorldEngine:
    """One JVM. Calls of its games are serialized, from one thread or several.

    It listens on the loopback interface, requires a token that only this process knows, and ends with this process.
    """

    def __init__(self) -> None:
        """Start the JVM, which takes about a second. Raises `ConfigError` without a suitable Java or package."""
        if _INSTALLED != VERSION:
            raise ConfigError(
                f"ScienceWorld {_INSTALLED} is installed, but its splits are known for {VERSION}. "
                f"Install that: pip install scienceworld=={VERSION}"
            )
        self._process, port, token = _start()
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._active: Globals | None = None
        self._games: WeakSet[Any] = WeakSet()
        self._ended = "it was closed, or its process ended"
        self._client = _Client(
            gateway_parameters=GatewayParameters(port=port, auth_token=token, read_timeout=CALL_SECONDS)
        )
        self._gateway = JavaGateway(gateway_client=self._client)
        self._jvm = self._gateway.jvm
        with self._guarded():
            self._prepare()

    @property
    def pid(self) -> int:
        """The process id of the JVM."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether this process can use it."""
        return self._owner == os.getpid() and self._client.is_connected and self._process.poll() is None

    def close(self) -> None:
        """Kill the JVM. Calling it twice is harmless."""
        self.forget()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def forget(self) -> None:
        """Stop using the JVM, in a forked process whose parent still uses it."""
        self._client.is_connected = False

    def admit(self, game: Any) -> None:
        """Count `game` for as long as it lives. Raises `NoRoom` if there are `MOST_GAMES` already."""
        with self._lock:
            if len(self._games) >= MOST_GAMES:
                raise NoRoom(
                    f"This process plays {len(self._games)} games of ScienceWorld already; the {HEAP_MB} MB of its "
                    f"Java engine have no room for more. {_REMEDY_ROOM}"
                )
            self._games.add(game)

    def globals(self) -> Globals:
        """New globals for a game."""
        with self._guarded():
            return Globals(self._jvm.java.util.Random(0), self._jvm.java.util.Random(0))

    def interface(self) -> Any:
        """A new game of the engine, with nothing loaded. Call within a turn, because it uses random numbers."""
        return self._jvm.scienceworld.runtime.pythonapi.PythonInterface()

    @contextmanager
    def turn(self, game_globals: Globals) -> Iterator[None]:
        """Make calls of the game with these globals.

        Raises `NoRoom` if the JVM runs out of memory, `EngineLost` if it dies otherwise or hangs, and `EnvError` if the
        engine fails.
        """
        with self._guarded():
            if self._active is not game_globals:
                if self._active is not None:
                    self._active.last_id = self._ids.count()
                self._draw_from(game_globals.random)
                self._set_last_id(game_globals.last_id)
                self._simplifier.parseSimplificationStr(game_globals.simplifications)
                self._active = game_globals
            yield

    @contextmanager
    def aside(self, game_globals: Globals) -> Iterator[None]:
        """Within a turn: make calls with fixed random numbers instead of the game's."""
        game_globals.aside.setSeed(0)
        self._draw_from(game_globals.aside)
        try:
            yield
        finally:
            self._draw_from(game_globals.random)

    def lines(self, texts: Any) -> tuple[str, ...]:
        """A Java collection of strings, in one call instead of one per string."""
        joined = self._jvm.java.lang.String.join("\n", texts)
        return tuple(joined.split("\n")) if joined else ()

    def as_action(self, match: Any, monitor: Any, goals: Any, agent: Any) -> Any:
        """The action of a match of the engine's parser."""
        return self._jvm.scienceworld.input.ActionTypecaster.typecastAction(match, monitor, goals, agent)

    def companion(self, action: Any) -> Any:
        """The Scala companion object of an action's class, which has the engine's checks of such actions."""
        return self._module(f"{action.getClass().getName()}$")

    def forget_routes(self) -> None:
        """Clear the routes cached by earlier gold paths, so that a gold path depends only on its task."""
        self._jvm.scienceworld.goldagent.PathFinder.precomputedExhaustivePaths().clear()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._lock:
            if not self._client.is_connected:
                raise EngineLost("This game's Java engine is gone.")
            try:
                yield
            except Py4JJavaError as error:
                raise EnvError(f"ScienceWorld's engine failed: {error.java_exception.toString()}") from error
            except (Py4JNetworkError, OSError) as error:
                raise self._lost(isinstance(getattr(error, "cause", None), TimeoutError)) from error
            except Exception:
                raise
            except BaseException:  # interrupted within a call, so its effect is unknown
                self.close()
                raise

    def log_end(self) -> None:
        """Log that the JVM is gone, and why: replaying its games on another takes noticeable time."""
        logger.warning(
            "ScienceWorld's Java engine of process %d is gone with %d live games: %s. Another will be started, "
            "and they are replayed there when needed.",
            os.getpid(),
            len(self._games),
            self._ended,
        )

    def _lost(self, hung: bool) -> EnvError:
        """Close the JVM and return the error to raise."""
        if not hung:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5.0)
        status = self._process.poll()
        self._ended = f"no answer within {CALL_SECONDS:g} s" if hung else f"its process ended, exit status {status}"
        self.close()
        if status != _OUT_OF_MEMORY:
            return EngineLost(f"The Java engine was lost ({self._ended}), and its games with it.")
        # Not replayed on another JVM: with the same games, that would run out of memory as well.
        self._ended = f"they need more than its {HEAP_MB} MB"
        return NoRoom(
            f"ScienceWorld's Java engine ran out of its {HEAP_MB} MB; live games: {len(self._games)}. {_REMEDY_ROOM}"
        )

    def _draw_from(self, random: Any) -> None:
        self._random_field.set(self._random_module, random)

    def _prepare(self) -> None:
        jvm, find = self._jvm, self._jvm.java.lang.Class.forName
        silent = jvm.java.io.PrintStream(os.devnull)  # the engine prints a lot at every step
        jvm.java.lang.System.setOut(silent)
        jvm.java.lang.System.setErr(silent)
        self._answer_at_once()
        self._module = cache(lambda name: find(name).getField("MODULE$").get(None))
        self._random_module = self._module("scala.util.Random$")
        self._random_field = find("scala.util.Random").getDeclaredField("self")
        self._random_field.setAccessible(True)
        self._ids = jvm.util.UniqueIdentifier
        self._set_last_id = getattr(self._ids, "count_$eq")
        self._simplifier = jvm.main.scala.scienceworld.runtime.SimplifierProcessor

    def _answer_at_once(self) -> None:
        """Switch off Nagle's algorithm on the Java side: with it, an answer of more than 8 kB is delayed by 40 ms."""
        find = self._jvm.java.lang.Class.forName
        connections = find("py4j.GatewayServer").getDeclaredField("connections")
        socket = find("py4j.GatewayConnection").getDeclaredField("socket")
        connections.setAccessible(True)
        socket.setAccessible(True)
        opened = connections.get(self._gateway.java_gateway_server)
        for index in range(opened.size()):
            socket.get(opened.get(index)).setTcpNoDelay(True)


class _Client(GatewayClient):  # type: ignore[misc]  # py4j has no types
    """Sends every command once. Py4J's own client retries, which could apply a step twice."""

    def send_command(self, command: str, retry: bool = True, binary: bool = False) -> Any:
        connection = self._get_connection()
        try:
            answer = connection.send_command(command)
        except BaseException:
            connection.close(reset=True)  # or its answer would be read as the next command's
            raise
        self._give_back_connection(connection)
        return answer


_ENGINE: ScienceWorldEngine | None = None
_STARTING = threading.Lock()


def engine() -> ScienceWorldEngine:
    """This process's engine, started on first use and after the last one is gone.

    Raises `ConfigError` without Java.
    """
    global _ENGINE
    with _STARTING:
        if _ENGINE is not None and not _ENGINE.alive():
            _ENGINE.log_end()
            _ENGINE = None
        if _ENGINE is None:
            _ENGINE = ScienceWorldEngine()
        return _ENGINE


@atexit.register
def _end() -> None:
    if _ENGINE is not None and _ENGINE.alive():
        _ENGINE.close()


def _leave_to_parent() -> None:
    global _ENGINE, _STARTING
    if _ENGINE is not None:
        _ENGINE.forget()
    _ENGINE, _STARTING = None, threading.Lock()


os.register_at_fork(after_in_child=_leave_to_parent)


def _start() -> tuple[subprocess.Popen[bytes], int, str]:
    """Start a JVM. Returns its process, port and token. Raises `ConfigError` if it does not start."""
    java = _find_java()
    command = [java, *_OPTIONS, "-cp", os.pathsep.join((find_jar_path(), JAR_PATH)), "py4j.GatewayServer"]
    command += ["--die-on-broken-pipe", "--enable-auth", "0"]
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=BASEPATH,  # the engine reads a table from there
                start_new_session=True,  # Ctrl-C must reach only this process, which ends the JVM
            )
        except OSError as error:  # built for another machine, or not a program
            raise ConfigError(f"{java} cannot be executed ({error.strerror}). {_REMEDY}") from error
        stdout_lines = _read_lines(process, 2)
        if len(stdout_lines) == 2 and stdout_lines[0].isdigit():
            return process, int(stdout_lines[0]), stdout_lines[1]
        process.kill()
        process.wait()
        stderr.seek(0)
        lines = stderr.read(4000).decode(errors="replace").splitlines()
    reasons = [line for line in lines if line and not line.startswith("Picked up ")]
    # A JVM that fails to start says why on stdout, in a headline and a line of detail.
    reason = reasons[0] if reasons else ": ".join(line for line in stdout_lines if line.strip("# "))
    reason = reason or f"no word within {_START_SECONDS:g} s, or exit status {process.returncode}"
    raise ConfigError(f"{java} does not start ScienceWorld's engine ({reason}). {_REMEDY}")


_REMEDY = (
    "Install Java 8 or newer (on Debian: apt-get install openjdk-17-jre-headless), on PATH or named by $JAVA_HOME."
)


def _find_java() -> str:
    home = os.environ.get("JAVA_HOME")
    if home and not os.access(os.path.join(home, "bin", "java"), os.X_OK):
        raise ConfigError(f"$JAVA_HOME is {home}, which holds no bin/java. {_REMEDY}")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if java is None:
        raise ConfigError(f"ScienceWorld runs on Java, and no `java` was found. {_REMEDY}")
    return java


def _read_lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    """The first lines that the process prints; fewer if it ends or times out."""
    assert process.stdout is not None
    deadline = time.monotonic() + _START_SECONDS
    read = b""
    while read.count(b"\n") < count:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not more:
            break
        read += more
    return read.decode(errors="replace").splitlines()
