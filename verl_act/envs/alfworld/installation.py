"""The doctor's check of ALFWorld: the official games, where they are installed."""

from __future__ import annotations

import os

from verl_act.envs.alfworld.game_index import list_games
from verl_act.errors import DataError, InstallationError, NotInstalledError
from verl_act.names import counts_text
from verl_act.settings.data import OFFICIAL_GAMES

_DOWNLOAD = "Run alfworld-download again, or set ALFWORLD_DATA to the folder that holds json_2.1.1."


def check_games() -> str:
    """The games in $ALFWORLD_DATA, or where `alfworld-download` puts them."""
    folder = os.environ.get("ALFWORLD_DATA")  # `package` sets it where alfworld-download has put the games
    if not folder:
        raise NotInstalledError(
            "$ALFWORLD_DATA is not set; recipes that generate their games need nothing.",
            "For the official games: alfworld-download, then set ALFWORLD_DATA to their folder.",
        )
    try:
        games = {split: list_games(split, folder) for split in OFFICIAL_GAMES}
    except DataError as error:
        raise InstallationError(f"{str(error).partition('. ')[0].rstrip('.')}.", _DOWNLOAD) from error
    for split, listed in games.items():
        if listed.damaged:
            detail = f"{len(listed.damaged)} of {split} damaged, which are left out: {listed.damaged[0]}"
            raise InstallationError(detail, _DOWNLOAD)
    counts = {split: len(listed.tasks) for split, listed in games.items()}
    unofficial = f"not the official games ({counts_text(OFFICIAL_GAMES)})"
    return f"{folder}: {counts_text(counts)}; {'the official games' if counts == OFFICIAL_GAMES else unofficial}"
