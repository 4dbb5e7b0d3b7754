"""ScienceWorld: primary school science in a house of text rooms, on the package's own Java engine.

`variations` lists tasks without the engine, `server` runs one JVM per process, `game` plays a game on it, `environment`
makes an episode of the game, `experts` replays the package's gold paths.
"""

from verl_act.envs.base import ASSETS, EnvSpec
from verl_act.envs.scienceworld.dialect import DIALECT
from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
from verl_act.envs.scienceworld.experts import GoldExpert
from verl_act.envs.scienceworld.importer import ScienceWorldImporter
from verl_act.envs.scienceworld.server import ScienceWorldEngine
from verl_act.envs.scienceworld.variations import NAME, SPLITS, data_digest, list_tasks
from verl_act.names import counts_text


def check_engine() -> str:
    """The number of tasks, if the Java engine starts. Raises `ConfigError` if Java is missing."""
    ScienceWorldEngine().close()
    return f"{counts_text({split: len(list_tasks(split)) for split in SPLITS})}; its Java engine starts"


SPEC = EnvSpec(
    name=NAME,
    make=ScienceWorldEnvironment,
    tasks=list_tasks,
    data_digest=data_digest,
    experts={"gold": GoldExpert},
    splits=SPLITS,
    lists_all_actions=False,
    importer=ScienceWorldImporter,
    dialect=DIALECT,
    models={"embedded": ASSETS / "embedded_model_scienceworld"},
    doctor=check_engine,
    max_episodes=64,  # the engine's Java heap has space for about 70 games
    packages=("scienceworld",),
)

__all__ = ["SPEC"]
