"""The privileged expert, which plays the shortest plan."""

from __future__ import annotations

from verl_act.envs.base import Environment, ExpertGaveUp, Task
from verl_act.envs.ties import TieBreaker
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.shopper import ShopperExpert
from verl_act.errors import EnvError
from verl_act.schema import Context


class GoalExpert:
    """Takes the shortest way to a reward of 1.0, sampled by task and seed where there are several.

    An action is inferable if `ShopperExpert` infers it too.
    """

    def __init__(self) -> None:
        self._ties = TieBreaker()

    def reset(self, task: Task, seed: int) -> None:
        self._ties = TieBreaker.of(task, seed)

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        """The first action of a shortest plan. Raises `ExpertGaveUp` if no purchase is found that earns 1.0."""
        if not isinstance(environment, WebShopEnvironment):
            raise EnvError(f"WebShop's experts need a WebShopEnvironment, not {type(environment).__name__}.")
        step = len(context.history)
        plan = environment.plan(rank=lambda text: self._ties.rank(text, step))
        if not plan:
            raise ExpertGaveUp(f"No purchase was found in this catalogue that meets all of {context.goal!r}.")
        return plan[0], ShopperExpert().act(context) == (plan[0], True)
