"""Rows of published trajectories, made from our own experts' episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_act.data_prep.expert.collect_expert import play
from verl_act.data_prep.imports.import_trajectories import REJECTED
from verl_act.envs.registry import get_env
from verl_act.schema import Step

Row = dict[str, Any]


def expert_trajectories(env: str, split: str, tasks: int, settings: Row) -> list[list[Step]]:
    """The first so many that the environment's expert wins."""
    spec = get_env(env)
    environment, expert = spec.make(**settings), next(iter(spec.experts.values()))()
    won: list[list[Step]] = []
    for task in spec.tasks(split, **settings):
        steps = play(environment, expert, task, source="expert")
        won += [steps] if steps[-1].success else []
        if len(won) == tasks:
            return won
    raise AssertionError(f"the expert wins only {len(won)} tasks")


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def rejections(out: Path) -> dict[int, str]:
    return {row["row"]: row["reason"] for row in map(json.loads, (out / REJECTED).read_text().splitlines())}
