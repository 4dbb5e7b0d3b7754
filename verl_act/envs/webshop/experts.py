"""The privileged expert, which plays the shortest plan."""

from __future__ import annotations

from verl_act.envs.base import Environment, ExpertGaveUp, Task
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.shopper import ShopperExpert
from verl_act.errors import EnvError
from verl_act.schema import Context


class GoalExpert:
    """Takes the shortest way to a reward of 1.0. An action is inferable if `ShopperExpert` infers it too."""

    def reset(self, task: Task) -> None:
        """Nothing to prepare."""

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        """The first action of a shortest plan. Raises `ExpertGaveUp` if no purchase is found that earns 1.0."""
        if not isinstance(environment, WebShopEnvironment):
            raise EnvError(f"WebShop's experts need a WebShopEnvironment, not {type(environment).__name__}.")
        plan = environment.plan()
        if not plan:
            raise ExpertGaveUp(f"No purchase was found in this catalogue that meets all of {context.goal!r}.")
        return plan[0], ShopperExpert().act(context) == (plan[0], True)
