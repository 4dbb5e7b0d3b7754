"""ALFWorld as an `Environment`: the engine's transcript without its banner, with a step limit and the privileged
plan length.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from verl_act.envs.alfworld.engine import AlfworldEngine, AlfworldState, Frame
from verl_act.envs.alfworld.game import GameFile, read_game
from verl_act.envs.alfworld.game_index import game_path
from verl_act.envs.alfworld.planner import Rank, shortest_plan
from verl_act.envs.base import Observation, StepResult, Task
from verl_act.errors import ConfigError, EnvError

_BANNER = "-= Welcome to TextWorld, ALFRED! =-"
_TASK = "Your task is to: "
_NOTHING = "Nothing happens."
_HIDDEN = frozenset({"help"})
"""Engine commands that are neither listed nor admissible: `help` prints a manual and does not serve a task."""

_LOCK = threading.RLock()  # the engine shares caches and a translator within a process; see `game`
_IDLE_ENGINES: list[AlfworldEngine] = []  # engines of closed environments: a library copy cannot be unloaded


class AlfworldSnapshot(NamedTuple):
    """A state of an episode."""

    engine: AlfworldState
    steps: int


class AlfworldEnvironment:
    """Plays ALFWorld games. Deterministic: a task's seed is not used.

    The reward is 1.0 on the step that reaches the goal and 0.0 otherwise. Different instances may be used from several
    threads (one lock per process).
    """

    def __init__(self, data: str | os.PathLike[str] | None = None, max_steps: int = 50, dev_share: float = 0.0) -> None:
        """`data`: the folder with `json_2.1.1` (default: `$ALFWORLD_DATA`); `max_steps`: most actions in an
        episode; `dev_share`: share of the training games that are of the split `dev` instead (see `list_games`).
        """
        if max_steps < 1:
            raise ConfigError(f"max_steps is {max_steps}; an episode needs at least one step.")
        if not 0 <= dev_share < 1:
            raise ConfigError(f"dev_share is {dev_share}; give a share of the training games, from 0 to below 1.")
        self._data = data
        self._max_steps = max_steps
        self._engine: AlfworldEngine | None = None
        self._started = False
        self._walkthrough: tuple[str, ...] = ()
        self._frame = Frame("", (), False)
        self._steps = 0

    def reset(self, task: Task) -> Observation:
        """Start `task`. Raises `EnvError` for a missing or damaged game file, `DataError` without data."""
        self._started = False  # after a failure, the previous episode must not continue
        return self.play(read_game(game_path(task, self._data)))

    def play(self, game: GameFile) -> Observation:
        """Start `game`, from any source. Raises `EnvError` if it is damaged."""
        with _LOCK:
            if self._engine is None:
                self._engine = _IDLE_ENGINES.pop() if _IDLE_ENGINES else AlfworldEngine()
            self._started = False
            self._steps = 0
            self._walkthrough = game.walkthrough
            self._engine.load(game)
            self._frame = self._engine.reset()
            paragraphs = [text for text in self._frame.feedback.split("\n\n") if text != _BANNER]
            goals = [text for text in paragraphs if text.startswith(_TASK)]
            if len(goals) != 1:
                raise EnvError(
                    f"{game.name}: its grammar states no task ({_TASK.strip()!r}). Write or download it again."
                )
            room = "\n\n".join(text for text in paragraphs if text not in goals)
            self._started = True
            return Observation(goals[0].removeprefix(_TASK).removesuffix("."), room, self._admissible())

    def step(self, action: str) -> StepResult:
        """Take `action`. After the end of an episode it has no effect."""
        with _LOCK:
            engine = self.playing()
            action = action.strip()
            admissible = action in self._frame.commands and action not in _HIDDEN
            over, feedback = self._over(), _NOTHING
            if not over:
                self._frame = engine.step(action)
                feedback = self._frame.feedback
                self._steps += 1
            return StepResult(
                observation=feedback,
                admissible_actions=self._admissible(),
                reward=float(self._frame.won and not over),
                done=self._over(),
                success=self._frame.won,
                admissible=admissible,
            )

    def close(self) -> None:
        """End the episode and keep the engine for the next environment of this process."""
        with _LOCK:
            if self._engine is not None:
                _IDLE_ENGINES.append(self._engine)
                self._engine = None

    def snapshot(self) -> AlfworldSnapshot:
        """The current state; valid until the next `reset`."""
        return AlfworldSnapshot(self.playing().state(), self._steps)

    def restore(self, snapshot: AlfworldSnapshot) -> None:
        with _LOCK:
            self.playing().return_to(snapshot.engine)
            self._frame = Frame("", snapshot.engine.menu.commands, snapshot.engine.won)
            self._steps = snapshot.steps

    def plan(self, rank: Rank = str) -> list[str] | None:
        """A shortest plan to the goal, ignoring the step limit (privileged); None if there is none.

        `rank` chooses between plans of the same length, as in `shortest_plan`.
        """
        with _LOCK:
            engine = self.playing()
            return shortest_plan(engine.game, engine.facts, rank)

    def plan_length(self) -> int | None:
        """The length of `plan` (privileged); None if there is none."""
        plan = self.plan()
        return None if plan is None else len(plan)

    def walkthrough(self) -> tuple[str, ...]:
        """The solution that came with the game file (privileged); empty if it has none."""
        return self._walkthrough

    def playing(self) -> AlfworldEngine:
        """The engine of the episode. Raises `EnvError` if there is none."""
        if self._engine is None or not self._started:
            raise EnvError("No episode is being played. Call `reset(task)` first.")
        return self._engine

    def _over(self) -> bool:
        return self._frame.won or self._steps >= self._max_steps

    def _admissible(self) -> tuple[str, ...]:
        return tuple(command for command in self._frame.commands if command not in _HIDDEN)
