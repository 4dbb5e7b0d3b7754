"""ALFWorld: household tasks in text, with its own engine wrapper, planner and experts.

`data` lists games, `game` and `grammar` compile them, `engine` plays them, `planner` finds shortest plans, `beliefs`
and `search` are the non-privileged expert.
"""

from verl_act.envs.alfworld.data import NAME, SPLITS, list_tasks
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.experts import PlannerExpert, WalkthroughExpert
from verl_act.envs.alfworld.importer import AlfworldImporter
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import EnvSpec

SPEC = EnvSpec(
    name=NAME,
    make=AlfworldEnvironment,
    tasks=list_tasks,
    experts={"search": SearchExpert, "planner": PlannerExpert, "walkthrough": WalkthroughExpert},
    splits=SPLITS,
    importer=AlfworldImporter,
)

__all__ = ["SPEC"]
