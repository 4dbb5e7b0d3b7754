"""A file of tasks to play (schema TASK): the rows of multi-turn RL, and the panels of an evaluation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

from verl_act.envs.registry import get_env
from verl_act.manifest import make_manifest, write_manifest
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
    """Write the tasks of `splits`, each once, in the environment's order, and a manifest; returns their number.

    `limit` draws that many a split, by `seed`.
    """
    spec = get_env(env)
    settings = dict(env_settings or {})
    spec.check_settings(settings)
    rows = []
    for split in splits:
        tasks = list(spec.tasks(split, **settings))
        if limit is not None and limit < len(tasks):
            chosen = sorted(random.Random(f"{seed}/{split}").sample(range(len(tasks)), limit))
            tasks = [tasks[number] for number in chosen]
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
