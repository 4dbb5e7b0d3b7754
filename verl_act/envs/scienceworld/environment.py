"""ScienceWorld as an `Environment`: tasks of primary school science in a house of text rooms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from reprlib import repr as brief  # an action may be of any length
from typing import NamedTuple

from verl_act.envs.base import NoRoom, Observation, StepResult, Task
from verl_act.envs.scienceworld.data import EASY, check_simplification, name_and_variation, playable, task_names
from verl_act.envs.scienceworld.game import Answer, Game, Menu, gold_path
from verl_act.envs.scienceworld.server import EngineLost
from verl_act.errors import ConfigError, EnvError

_GOAL = "Your task is to "
_OVER = "The episode is over."
_LONGEST = 1000
"""Characters of the longest action that the engine is asked about; its own entries have less than 300."""


class Snapshot(NamedTuple):
    """A state of an episode: how to come to it, and what it shows."""

    actions: tuple[str, ...]
    answer: Answer
    menu: Menu


class ScienceWorldEnvironment:
    """Plays ScienceWorld's tasks; deterministic, so a task's seed is not used.

    `admissible_actions` are the engine's valid actions less those on objects that it does not understand where the
    agent is (things in closed containers), and less `reset task`: about 100 to 4,000, on average 500. (A prompt may
    show fewer, by a template's `max_listed`.) `admissible` is true for any wording in which the engine understands a
    valid action, false for what it does not understand or what would change nothing (opening what is open). A text
    that may mean several actions is answered with a question; the numbers that answer it are then the only admissible
    actions, and anything else takes the question back.

    The score is the engine's, 0 to 100, and below 0 once the task has been failed for good, which ends the episode.
    The reward is the change of the score, divided by 100; that of the first step includes what the engine gives for the
    start, so that an episode's rewards add up to its score. Success is a completed task with score 100.

    Where the Java engine dies within an episode, the episode is replayed on a new one, once a step. Not so for want of
    memory: the episode that asked for more ends with `NoRoom`, which leaves the others theirs.
    """

    def __init__(
        self,
        simplification: str = EASY,
        max_steps: int = 100,
        tasks: Iterable[str] | None = None,
    ) -> None:
        """`simplification`: a preset (see `data.SIMPLIFICATIONS`); `max_steps`: actions that an episode may take;
        `tasks`: the names that `list_tasks` is restricted to.

        Raises `ConfigError` for settings that cannot work.
        """
        check_simplification(simplification)
        task_names(tasks)
        if max_steps < 1:
            raise ConfigError(f"max_steps is {max_steps}; an episode needs at least one step.")
        self._simplification = simplification
        self._max_steps = max_steps
        self._game: Game | None = None
        self._task: Task | None = None
        self._goal = ""
        self._actions: list[str] = []
        self._menu = Menu()
        self._answer = Answer("", 0, False)

    def reset(self, task: Task) -> Observation:
        """Start `task`. Raises `EnvError` where it is unknown or cannot be played, `NoRoom` where the process plays as
        many as it can, `ConfigError` without Java.
        """
        self._task = None  # after a failure, the last episode must not go on
        name, _ = name_and_variation(task)
        if not playable(name, self._simplification):
            raise EnvError(f"{task}: cannot be done with the simplification {self._simplification!r}.")
        self._actions = []
        with self._leaving_room():
            try:
                self._load(task)
            except EngineLost:
                self._load(task)
        self._task = task
        return Observation(self._goal.removeprefix(_GOAL), self._answer.text, self._menu.actions)

    def step(self, action: str) -> StepResult:
        """Take `action`. After the end of an episode nothing happens any more.

        Raises `EnvError` where the engine fails, or dies twice, and `NoRoom` where it runs out of memory.
        """
        self._playing()
        if self._over():
            return StepResult(_OVER, self._menu.actions, 0.0, True, self._won(), False)
        before = self._answer.score if self._actions else 0
        with self._leaving_room():
            try:
                admissible = self._take(action)
            except EngineLost:
                self._recover()
                admissible = self._take(action)
        self._actions.append(action)
        return StepResult(
            observation=self._answer.text,
            admissible_actions=self._menu.actions,
            reward=(self._answer.score - before) / 100,
            done=self._over(),
            success=self._won(),
            admissible=admissible,
        )

    def close(self) -> None:
        """End the episode. The engine stays, for the other episodes of this process."""
        self._game = self._task = None

    def release(self) -> None:
        """Give the game's 10 MB back to the engine, whose heap holds about 70 of them."""
        self.close()

    def snapshot(self) -> Snapshot:
        """The current state; valid until the next `reset`."""
        self._playing()
        return Snapshot(tuple(self._actions), self._answer, self._menu)

    def restore(self, snapshot: Snapshot) -> None:
        """Return to `snapshot`. The engine has no way back: it is told the actions again, but not asked in between what
        could be done, which takes ten times as long as an action.

        Raises `EnvError` where the engine does not come to the same state, or dies twice, and `NoRoom` where it runs
        out of memory.
        """
        self._playing()
        assert self._task is not None
        with self._leaving_room():
            try:
                _, answer = self._start(self._task, snapshot.actions)
            except EngineLost:
                _, answer = self._start(self._task, snapshot.actions)
        if answer != snapshot.answer:
            raise EnvError(f"{self._task}: replaying {brief(snapshot.actions)} gave another state.")
        self._actions, self._answer, self._menu = list(snapshot.actions), snapshot.answer, snapshot.menu

    def score(self) -> int:
        """The engine's score of the episode so far: 0 to 100, below 0 where the task has been failed for good."""
        self._playing()
        return self._answer.score

    def reading(self, action: str) -> tuple[str, bool]:
        """`action` in the wording of the complete list of actions, where it has one; and whether it is admissible."""
        spoken = _spoken(action)
        if self._menu.holds(spoken.lower()):
            return spoken.lower(), True
        readings = self._playing().readings(spoken)
        names = [self._menu.name_of(reading.meaning) for reading in readings]
        # What may mean several things keeps its wording: the engine's question lists them by it.
        name = names[0] if len(names) == 1 and names[0] else action
        return name, any(reading.possible for reading in readings)

    def gold_path(self) -> tuple[str, ...]:
        """The package's own solution of the current task, in its wording (privileged); found in seconds, and kept."""
        self._playing()
        assert self._task is not None
        return gold_path(*name_and_variation(self._task), self._simplification)

    @contextmanager
    def _leaving_room(self) -> Iterator[None]:
        """An episode for which there is no room ends: to go on, it would take from the others what they have."""
        try:
            yield
        except NoRoom:
            self.close()
            raise

    def _load(self, task: Task) -> None:
        game, answer = self._start(task)
        self._goal = game.goal()
        self._answer, self._menu = answer, game.menu()

    def _start(self, task: Task, actions: Iterable[str] = ()) -> tuple[Game, Answer]:
        """The task's game after `actions`, on a new engine where the last is gone; and what it said last."""
        if self._game is None or not self._game.alive():
            self._game = Game()
        answer = self._game.load(*name_and_variation(task), self._simplification)
        for action in actions:
            answer = self._game.say(_spoken(action))
        return self._game, answer

    def _take(self, action: str) -> bool:
        """Say `action` to the engine; whether it was admissible."""
        game = self._playing()
        _, admissible = self.reading(action)
        answer, menu = game.say(_spoken(action)), game.menu()
        # Together: where the engine dies between the two, the state before is what the replay must come to.
        self._answer, self._menu = answer, menu
        return admissible

    def _recover(self) -> None:
        """Play the episode again on a new engine. Raises `EnvError` where it does not come out the same."""
        shown = self._menu
        self.restore(self.snapshot())
        if self._playing().menu() != shown:
            raise EnvError(f"{self._task}: the engine died, and replaying {brief(self._actions)} gave another state.")

    def _playing(self) -> Game:
        if self._game is None or self._task is None:
            raise EnvError("No episode is being played. Call `reset(task)` first.")
        return self._game

    def _won(self) -> bool:
        return self._answer.completed and self._answer.score == 100

    def _over(self) -> bool:
        return self._answer.completed or self._answer.score < 0 or len(self._actions) >= self._max_steps


def _spoken(action: str) -> str:
    """What the engine is told: an empty text instead of one that is too long, or holds what cannot be printed.

    The engine understands neither, and an empty text takes back its question as any other would.
    """
    if len(action) > _LONGEST:
        return ""
    spoken = " ".join(action.split())
    return spoken if spoken.isprintable() else ""
