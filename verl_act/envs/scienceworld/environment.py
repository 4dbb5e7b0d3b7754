"""ScienceWorld as an `Environment`: primary school science in text rooms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from reprlib import repr as brief  # an action may be of any length
from typing import NamedTuple, TypeVar

from verl_act.envs.base import NoRoom, Observation, StepResult, Task
from verl_act.envs.scienceworld.game import ActionMenu, Answer, Game, gold_path
from verl_act.envs.scienceworld.server import EngineLost
from verl_act.envs.scienceworld.variations import EASY, check_simplification, name_and_variation, playable, task_names
from verl_act.errors import ConfigError, EnvError

_GOAL = "Your task is to "
_OVER = "The episode is over."
_T = TypeVar("_T")
_LONGEST = 1000
"""Most characters of an action that is sent to the engine; its own entries have fewer than 300."""


class ScienceWorldSnapshot(NamedTuple):
    """A state of an episode: the actions that lead to it, and its answer and menu."""

    actions: tuple[str, ...] = ()
    answer: Answer = Answer("", 0, False)
    menu: ActionMenu = ActionMenu()


class ScienceWorldEnvironment:
    """Plays ScienceWorld's tasks. Deterministic: a task's seed is not used.

    `admissible_actions` are the engine's valid actions without `reset task` and without those on objects that it does
    not accept at the agent's location (such as in closed containers): about 100 to 4,000, on average 500. (A template's
    `max_listed` limits how many a prompt shows.) `admissible` is true for any wording that the engine understands as a
    valid action. It is false for what the engine does not understand or what would change nothing (opening an open
    door). The engine answers an ambiguous text with a question; then only the numbers that answer it are admissible,
    and any other text cancels the question.

    The score is the engine's, 0 to 100, or negative once the task has failed for good, which ends the episode. The
    reward is the change of the score divided by 100. The first step's reward includes the score of the start, so that
    an episode's rewards add up to its score. Success is a completed task with score 100.

    If the Java engine dies within an episode, the episode is replayed on a new one, once per step. If it runs out of
    memory, the episode that needed more ends with `NoRoom`, to protect the others.
    """

    def __init__(
        self,
        simplification: str = EASY,
        max_steps: int = 100,
        tasks: Iterable[str] | None = None,
    ) -> None:
        """`simplification`: a preset (see `variations.SIMPLIFICATIONS`); `max_steps`: most actions in an episode;
        `tasks`: the task names that `list_tasks` is restricted to.

        Raises `ConfigError` for invalid settings.
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
        self._now = ScienceWorldSnapshot()

    def reset(self, task: Task) -> Observation:
        """Start `task`. Raises `EnvError` if it is unknown or cannot be played, `NoRoom` if the process has no capacity
        for it, `ConfigError` without Java.
        """
        self._task = None  # after a failure, the previous episode must not continue
        name, _ = name_and_variation(task)
        if not playable(name, self._simplification):
            raise EnvError(f"{task}: cannot be done with the simplification {self._simplification!r}.")
        self._twice(lambda: self._load(task))
        self._task = task
        return Observation(self._goal.removeprefix(_GOAL), self._now.answer.text, self._now.menu.actions)

    def step(self, action: str) -> StepResult:
        """Take `action`. After the end of an episode it has no effect.

        Raises `EnvError` if the engine fails, or dies twice, and `NoRoom` if it runs out of memory.
        """
        self._playing()
        if self._over():
            return StepResult(_OVER, self._now.menu.actions, 0.0, True, self._won(), False)
        before = self._now.answer.score if self._now.actions else 0
        admissible = self._twice(lambda: self._take(action), self._recover)
        return StepResult(
            observation=self._now.answer.text,
            admissible_actions=self._now.menu.actions,
            reward=(self._now.answer.score - before) / 100,
            done=self._over(),
            success=self._won(),
            admissible=admissible,
        )

    def close(self) -> None:
        """End the episode. The engine keeps running for the other episodes of this process."""
        self._game = self._task = None

    def release(self) -> None:
        """Free the game's 10 MB of the engine's heap, which has space for about 70 games."""
        self.close()

    def snapshot(self) -> ScienceWorldSnapshot:
        """The current state; valid until the next `reset`."""
        self._playing()
        return self._now

    def restore(self, snapshot: ScienceWorldSnapshot) -> None:
        """Restore `snapshot`. The engine cannot go back, so the actions are replayed, without listing the possible
        actions in between, which takes ten times as long as an action.

        Raises `EnvError` if the replay reaches a different state or the engine dies twice, and `NoRoom` if it runs out
        of memory.
        """
        _, task = self._playing()
        _, answer = self._twice(lambda: self._start(task, snapshot.actions))
        if answer != snapshot.answer:
            raise EnvError(f"{task}: replaying {brief(snapshot.actions)} gave another state.")
        self._now = snapshot

    def score(self) -> int:
        """The engine's score of the episode so far: 0 to 100, negative if the task has failed for good."""
        self._playing()
        return self._now.answer.score

    def reading(self, action: str) -> tuple[str, bool]:
        """`action` in the wording of the engine's action list, if it is there, and whether it is admissible."""
        spoken = _spoken(action)
        if spoken.lower() in self._now.menu.understood:
            return spoken.lower(), True
        game, _ = self._playing()
        readings = game.readings(spoken)
        names = [self._now.menu.name_of(reading.meaning) for reading in readings]
        # An ambiguous text keeps its wording: the engine's question refers to it.
        name = names[0] if len(names) == 1 and names[0] else action
        return name, any(reading.possible for reading in readings)

    def gold_path(self) -> tuple[str, ...]:
        """The package's own solution of the current task, in its wording (privileged). Takes seconds; cached."""
        _, task = self._playing()
        return gold_path(*name_and_variation(task), self._simplification)

    def _twice(self, play: Callable[[], _T], recover: Callable[[], None] = lambda: None) -> _T:
        """Play again, after `recover`, if the engine dies. `NoRoom` ends the episode, to leave memory to the others."""
        try:
            try:
                return play()
            except EngineLost:
                recover()
                return play()
        except NoRoom:
            self.close()
            raise

    def _load(self, task: Task) -> None:
        game, answer = self._start(task)
        self._goal = game.goal()
        self._now = ScienceWorldSnapshot((), answer, game.menu())

    def _start(self, task: Task, actions: Iterable[str] = ()) -> tuple[Game, Answer]:
        """The task's game after `actions`, on a new engine if the last one is gone, and its last answer."""
        if self._game is None or not self._game.alive():
            self._game = Game()
        answer = self._game.load(*name_and_variation(task), self._simplification)
        for action in actions:
            answer = self._game.say(_spoken(action))
        return self._game, answer

    def _take(self, action: str) -> bool:
        """Send `action` to the engine. Returns whether it was admissible."""
        game, _ = self._playing()
        _, admissible = self.reading(action)
        # Assigned at once: if the engine dies between the two calls, a replay must reach the state before.
        self._now = ScienceWorldSnapshot((*self._now.actions, action), game.say(_spoken(action)), game.menu())
        return admissible

    def _recover(self) -> None:
        """Replay the episode on a new engine. Raises `EnvError` if it reaches a different state."""
        self.restore(self._now)
        game, task = self._playing()
        if game.menu() != self._now.menu:
            raise EnvError(f"{task}: the engine died, and replaying {brief(self._now.actions)} gave another state.")

    def _playing(self) -> tuple[Game, Task]:
        if self._game is None or self._task is None:
            raise EnvError("No episode is being played. Call `reset(task)` first.")
        return self._game, self._task

    def _won(self) -> bool:
        return self._now.answer.completed and self._now.answer.score == 100

    def _over(self) -> bool:
        answer = self._now.answer
        return answer.completed or answer.score < 0 or len(self._now.actions) >= self._max_steps


def _spoken(action: str) -> str:
    """The text to send to the engine: empty instead of one that is too long or not printable.

    The engine understands neither, and an empty text cancels its question like any other.
    """
    if len(action) > _LONGEST:
        return ""
    spoken = " ".join(action.split())
    return spoken if spoken.isprintable() else ""
