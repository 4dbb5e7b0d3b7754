"""What several tests share: a few generated ALFWorld games, and pairs from them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from verl_act.settings.data import ExpertSettings, GamesSettings, PairsSettings

# How long an example takes says something of the machine; the first one builds Hypothesis's tables of Unicode.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """verl on the CPU; Ray's files in a folder of this run, since it looks there for a running cluster."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("VERL_PLATFORM", "cpu")  # also with a build of torch for accelerators
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, for the sockets in it
    _keep_to_own_cores()


def _keep_to_own_cores() -> None:
    """Side by side, every process of the tests has cores of its own: threads that wait for each other go slow else."""
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cores = sorted(os.sched_getaffinity(0))
    if worker and workers <= len(cores):
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: workers])


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: side by side with others, the last file should not be a long one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small games: two of each task type for training, one for each evaluation split."""
    from verl_act.envs.alfworld.games.make_games import make_games

    folder = tmp_path_factory.mktemp("alfworld") / "games"
    make_games(
        GamesSettings(counts={"train": 12, "valid_seen": 6, "valid_unseen": 6}, seed=7, workers=0, size="small"), folder
    )
    return folder


@pytest.fixture(scope="session")
def pairs(games: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of the games' training split, against random admissible actions."""
    from verl_act.data_prep.expert.collect_expert import collect_expert
    from verl_act.data_prep.pairs.build_pairs import build_pairs

    folder, settings = tmp_path_factory.mktemp("critic"), {"data": str(games)}
    collect_expert(ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=0), folder / "expert")
    build_pairs(
        PairsSettings(
            trajectories=[folder / "expert" / "trajectories.parquet"],
            alternatives=[],
            env_settings=settings,
            source="admissible",
            workers=0,
        ),
        folder / "pairs",
    )
    return folder / "pairs" / "pairs.parquet"
