"""The privileged experts, which use the engine and may know what the transcript does not show."""

from __future__ import annotations

from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import Environment, Task
from verl_act.envs.ties import TieBreaker
from verl_act.errors import EnvError
from verl_act.schema import Context


class PlannerExpert:
    """Follows a shortest plan, sampled by task and seed where there are several.

    An action is inferable if the search expert also takes it and calls it inferable.
    """

    _ties = TieBreaker()

    def reset(self, task: Task, seed: int) -> None:
        self._ties = TieBreaker.of(task, seed)

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        """The first action of a shortest plan. Raises `EnvError` if there is none."""
        step = len(context.history)
        plan = _alfworld(environment).plan(rank=lambda name: self._ties.rank(name, step))
        if not plan:
            raise EnvError(f"No plan reaches the goal {context.goal!r} from here.")
        return plan[0], SearchExpert().act(context) == (plan[0], True)


class WalkthroughExpert:
    """Replays the solution stored in the game file, as long as the history follows it. The seed is not used."""

    def reset(self, task: Task, seed: int) -> None:
        """Nothing to prepare."""

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        """The stored action of this step. Raises `EnvError` if there is none or the history differs."""
        stored, step = _alfworld(environment).walkthrough(), len(context.history)
        if tuple(turn.action for turn in context.history) != stored[:step] or step >= len(stored):
            raise EnvError(
                f"The game's walkthrough ({len(stored)} actions) has no action for step {step} of this history."
            )
        return stored[step], SearchExpert().act(context) == (stored[step], True)


def _alfworld(environment: Environment) -> AlfworldEnvironment:
    if not isinstance(environment, AlfworldEnvironment):
        raise EnvError(f"ALFWorld's experts play in AlfworldEnvironment, not in {type(environment).__name__}.")
    return environment
