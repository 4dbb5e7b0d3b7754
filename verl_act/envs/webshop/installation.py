"""The doctor's check of WebShop: the embedded catalogue."""

from __future__ import annotations

from verl_act.envs.webshop.goals import SPLITS, list_tasks
from verl_act.names import counts_text


def check_catalogue() -> str:
    """The number of goals in the catalogue that comes with the package (built on first use)."""
    return f"{counts_text({split: len(list_tasks(split)) for split in SPLITS})} (the embedded catalogue)"
