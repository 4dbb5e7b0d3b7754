from verl_act.envs.base import EnvSpec
from verl_act.envs.scienceworld.data import NAME, SPLITS, list_tasks
from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
from verl_act.envs.scienceworld.experts import GoldExpert

SPEC = EnvSpec(
    name=NAME,
    make=ScienceWorldEnvironment,
    tasks=list_tasks,
    experts={"gold": GoldExpert},
    splits=SPLITS,
)
__all__ = ["SPEC"]
