"""What several tests share: a few generated ALFWorld games."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small games: two of each task type for training, one for each evaluation split."""
    from verl_act.data_prep.make_games import make_games

    folder = tmp_path_factory.mktemp("alfworld") / "games"
    make_games(folder, counts={"train": 12, "valid_seen": 6, "valid_unseen": 6}, seed=7, progress=False)
    return folder
