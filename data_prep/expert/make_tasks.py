"""Write a file of tasks (schema TASK), for multi-turn RL or as an eval set."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

from verl_act.envs.base import EnvSpec
from verl_act.envs.settings import check_env
from verl_act.errors import OptionError
from verl_act.manifest import make_manifest, write_manifest
from verl_act.options import Positive, Seed, check_options
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.schema import TASK, write_rows

FILE_NAME = "tasks.parquet"


@writes_folder("make_tasks")
def make_tasks(
    out: str | PathLike[str],
    env: str,
    splits: Sequence[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    env_settings: Mapping[str, Any] | None = None,
) -> int:
    """Write the tasks of `splits` (in the environment's order) and a manifest. Returns the number of tasks.

    `limit` samples at most that many tasks per split, with `seed`.
    """
    settings = dict(env_settings or {})
    spec = check_settings(env, splits, limit=limit, seed=seed, env_settings=settings)
    rows = []
    for split in splits:
        tasks = list(spec.tasks(split, **settings))
        if limit is not None and limit < len(tasks):
            chosen = sorted(random.Random(f"{seed}/{split}").sample(range(len(tasks)), limit))
            tasks = [tasks[index] for index in chosen]
        rows += [asdict(task) for task in tasks]
    with atomic_folder(out) as folder:
        write_rows(folder / FILE_NAME, rows, TASK)
        manifest = make_manifest(
            "make_tasks",
            settings={"env": env, "splits": list(splits), "limit": limit, "env_settings": settings},
            counts={"tasks": len(rows)},
            seed=seed,
        )
        write_manifest(folder, manifest)
    return len(rows)


def check_settings(
    env: str,
    splits: Sequence[str],
    *,
    limit: Positive | None = None,
    seed: Seed = 0,
    env_settings: Mapping[str, Any] | None = None,
) -> EnvSpec:
    """Return the environment. Raises `ConfigError` for an invalid setting."""
    check_options(check_settings, {"limit": limit, "seed": seed})
    if not splits:
        raise OptionError("splits", "is empty; give at least one split.")
    return check_env(env, env_settings or {}, splits, option="splits")
