"""Checks of the environments: ALFWorld's official games, ScienceWorld with its Java, WebShop's catalogue."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from verl_act.doctor.check_result import Fault, NotThere
from verl_act.envs.base import EnvSpec
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, DataError

OFFICIAL_GAMES = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
"""Playable games of the official data: the splits of ALFWorld's own evaluation (arXiv 2010.03768)."""
_DOWNLOAD = "Run alfworld-download again, or set ALFWORLD_DATA to the folder that holds json_2.1.1."


def alfworld_data() -> str:
    """The games in $ALFWORLD_DATA, or where `alfworld-download` puts them."""
    configured = os.environ.get("ALFWORLD_DATA")  # the package sets it when it is imported
    spec = _installed("alfworld", "textworld")
    from verl_act.envs.alfworld.data import VERSION_FOLDER, list_games

    folder = configured or str(Path.home() / ".cache" / "alfworld")
    if not configured and not Path(folder, VERSION_FOLDER).is_dir():
        raise NotThere(
            "$ALFWORLD_DATA is not set; recipes that generate their games need nothing.",
            "For the official games: alfworld-download, then set ALFWORLD_DATA to their folder.",
        )
    try:
        games = {split: list_games(split, folder) for split in spec.splits}
    except DataError as error:
        raise Fault(f"{str(error).partition('. ')[0].rstrip('.')}.", _DOWNLOAD) from error
    for split, listed in games.items():
        if listed.damaged:
            raise Fault(f"{len(listed.damaged)} of {split} damaged, which are left out: {listed.damaged[0]}", _DOWNLOAD)
    counts = {split: len(listed.tasks) for split, listed in games.items()}
    official = "the official games" if counts == OFFICIAL_GAMES else f"not the official games ({_list(OFFICIAL_GAMES)})"
    return f"{folder}: {_list(counts)}; {official}"


def scienceworld_engine() -> str:
    """The number of its tasks, and whether its Java engine starts."""
    spec = _installed("scienceworld", "scienceworld")
    from verl_act.envs.scienceworld.server import Engine

    try:
        engine = Engine()
    except ConfigError as error:
        detail, _, remedy = str(error).partition(". ")
        raise Fault(f"{detail}.", remedy) from error
    engine.close()
    return f"{_list({split: len(spec.tasks(split)) for split in spec.splits})}; its Java engine starts"


def webshop_catalogue() -> str:
    """The number of goals in the catalogue that comes with the package (built on first use)."""
    spec = _installed("webshop", "rapidfuzz")
    return f"{_list({split: len(spec.tasks(split)) for split in spec.splits})} (the embedded catalogue)"


def _installed(env: str, package: str) -> EnvSpec:
    if find_spec(package) is None:
        raise NotThere(f"{package} is not installed.", f"To play {env}: pip install 'verl-act[{env}]'")
    return get_env(env)


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())
