"""The doctor's check of ScienceWorld: whether its Java engine starts."""

from __future__ import annotations

from verl_act.envs.scienceworld.data import SPLITS, list_tasks
from verl_act.envs.scienceworld.server import ScienceWorldEngine
from verl_act.names import counts_text


def check_engine() -> str:
    """The number of its tasks, if the engine starts. Raises `ConfigError` if Java is missing."""
    ScienceWorldEngine().close()
    return f"{counts_text({split: len(list_tasks(split)) for split in SPLITS})}; its Java engine starts"
