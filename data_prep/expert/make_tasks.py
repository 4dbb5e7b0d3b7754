"""Write a file of tasks (schema TASK), for multi-turn RL or as an eval set."""

from __future__ import annotations

from dataclasses import asdict
from os import PathLike

from verl_act.envs.base import EnvSpec
from verl_act.envs.settings import check_env, input_folders
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.run_folder import TASKS as TASKS_FILE
from verl_act.sampling import sample_in_order
from verl_act.schema import TASK, write_rows
from verl_act.settings.data import TasksSettings


@writes_folder("make_tasks")
def make_tasks(settings: TasksSettings, out: str | PathLike[str]) -> Manifest:
    """Write the tasks of the splits, in the environment's order, to `out/tasks.parquet`, and a manifest."""
    spec = check_settings(settings)
    rows = [
        asdict(task)
        for split in settings.splits
        for task in sample_in_order(
            spec.tasks(split, **settings.env_settings), settings.limit, f"{settings.seed}/{split}"
        )
    ]
    manifest = make_manifest(
        "make_tasks",
        settings=settings.recorded(),
        inputs=input_folders(settings.env_settings),
        counts={"tasks": len(rows)},
        seed=settings.seed,
    )
    with atomic_folder(out) as folder:
        write_rows(folder / TASKS_FILE, rows, TASK)
        write_manifest(folder, manifest)
    return manifest


def check_settings(settings: TasksSettings) -> EnvSpec:
    """Return the environment. Raises `ConfigError` for an invalid setting."""
    return check_env(settings.env, settings.env_settings, settings.splits, option="splits")
