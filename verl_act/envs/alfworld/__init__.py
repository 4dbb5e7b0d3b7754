"""ALFWorld: household tasks in text, with its own engine wrapper, planner and experts.

`game_index` lists games, `game` and `grammar` compile them, `engine` plays them, `planner` finds shortest plans,
`beliefs` and `search` are the non-privileged expert.
"""

import os

from verl_act.envs.alfworld.dialect import DIALECT
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.experts import PlannerExpert, WalkthroughExpert
from verl_act.envs.alfworld.game_index import NAME, SPLITS, check_games, data_digest, list_tasks
from verl_act.envs.alfworld.importer import AlfworldImporter
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import ASSETS, EnvSpec
from verl_act.manifest import Manifest
from verl_act.settings.data import GamesSettings


def make_games(settings: GamesSettings, out: str | os.PathLike[str]) -> Manifest:
    """Call `games.make_games`, which is imported on use."""
    from verl_act.envs.alfworld.games.make_games import make_games as make

    return make(settings, out)


SPEC = EnvSpec(
    name=NAME,
    make=AlfworldEnvironment,
    tasks=list_tasks,
    data_digest=data_digest,
    experts={"search": SearchExpert, "planner": PlannerExpert, "walkthrough": WalkthroughExpert},
    splits=SPLITS,
    importer=AlfworldImporter,
    dialect=DIALECT,
    models={
        "embedded": ASSETS / "embedded_model",
        "embedded_thinking": ASSETS / "embedded_model_thinking",
        "embedded_full": ASSETS / "embedded_model_full",  # not in the package: make embedded-model-full
    },
    make_games=make_games,
    doctor=check_games,
    packages=("alfworld", "textworld"),
)
