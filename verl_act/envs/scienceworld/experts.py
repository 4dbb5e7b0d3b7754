"""The expert of ScienceWorld: the package's own gold paths."""

from __future__ import annotations

import re

from verl_act.envs.base import Environment, ExpertGaveUp, Task
from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
from verl_act.errors import EnvError
from verl_act.schema import Context

_WORD = re.compile(r"[a-z0-9]+")
_NO_OBJECTS = set(
    _WORD.findall(
        "activate and around at close connect containing deactivate disconnect down dunk eat flush focus go in into "
        "inventory look mix move nothing of on open pick pour put read task teleport to up use wait wait1"
    )
)
_TO_A_PLACE = re.compile(r"(?:go|teleport) to (?:door to )?(.+?)(?: door)?")
_OPENING = re.compile(r"open (.+)")
_BEEN_IN = re.compile(
    r"location is called the ([^.]+)\.|room is called the ([^.]+)\.|You (?:move|teleport) to the ([^.]+)\."
)


class GoldExpert:
    """Plays the gold path of a task in the wording of the environment's action list. Privileged.

    A path knows where everything is and results that nobody has measured yet. It includes actions that change nothing,
    such as opening open doors, which are played too because growing, melting and hatching take steps. A path may need
    more steps than an episode has, and some paths do not reach the goal.

    An action is inferable if it needs only what the context shows. Three rules decide:

    - it is admissible;
    - every word that names its objects has occurred in the goal or in an observation;
    - going where the agent has not been, and opening something, are searches whose result only the path knows: they are
      inferable only if the goal names the location or the object. An answer to the engine's question which of several
      similar objects is meant is not inferable.

    The rules are lexical: they cannot tell a measured conclusion from one that was never measured.
    """

    def __init__(self) -> None:
        self._path: tuple[str, ...] | None = None
        self._played: list[str] = []

    def reset(self, task: Task, seed: int) -> None:
        """Forget the last task's path. The next one is computed at the first `act`, in seconds. The engine samples its
        own ties: `seed` is not used.
        """
        self._path, self._played = None, []

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        """The path's next action. Raises `ExpertGaveUp` if it ends before the goal, `EnvError` if the history has
        left the path.
        """
        if not isinstance(environment, ScienceWorldEnvironment):
            raise EnvError(f"Gold paths are played in ScienceWorldEnvironment, not in {type(environment).__name__}.")
        if self._path is None:
            self._path = environment.gold_path()
        step = len(context.history)
        if [turn.action for turn in context.history] != self._played:
            raise EnvError(f"The gold path has no action for step {step}: another path was taken.")
        if step >= len(self._path):
            raise ExpertGaveUp(f"The gold path ends after {step} actions, before the goal.")
        action, admissible = environment.reading(self._path[step])
        self._played.append(action)
        return action, admissible and follows(action, context)


def follows(action: str, context: Context) -> bool:
    """Whether `action`, an admissible one, needs only what `context` shows: the last two rules of `GoldExpert`."""
    goal = _words(context.goal)
    texts = [*(turn.observation for turn in context.history), context.observation]
    if action.isdigit() or not _words(action) - _NO_OBJECTS <= goal.union(*map(_words, texts)):
        return False
    if destination := _TO_A_PLACE.fullmatch(action):
        been = {name for text in texts for groups in _BEEN_IN.findall(text) for name in groups if name}
        return destination[1] in been or _words(destination[1]) <= goal
    opened = _OPENING.fullmatch(action)
    return opened is None or _words(opened[1]) - _NO_OBJECTS <= goal


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
