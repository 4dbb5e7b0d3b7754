"""From the single answers of an evaluation to one number an item: what a comparison of methods is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.evaluate.figures import LOOP_LENGTH, finished, margin_name, place_name
from verl_act.evaluate.files import CHOICES, EPISODES, NEXT_ACTIONS, REASONING

Record = Mapping[str, Any]
Values = dict[tuple[str, str, str], dict[str, float]]
"""(split, figure, group) -> item -> value; group is empty for all items."""


@dataclass(frozen=True, slots=True)
class FigureKind:
    """`file` and `item` say where its items are; `value` of a record is None where it has none.

    `binary` values are 0 or 1; `share` is shown in percent.
    """

    title: str
    file: str
    item: str
    value: Callable[[Record], float | None]
    group: Callable[[Record], str] = lambda record: ""
    binary: bool = True
    share: bool = True


def _right(record: Record) -> float:
    return float(record["right"])


def _right_inferable(record: Record) -> float | None:
    return float(record["right"]) if record["inferable"] else None


def _useful(record: Record) -> float | None:
    tokens = record.get("reply_tokens")
    return record["useful_tokens"] / tokens if tokens else None


FIGURES: dict[str, FigureKind] = {
    "success": FigureKind("tasks solved", EPISODES, "task_id", lambda record: float(record["success"])),
    "success_by_type": FigureKind(
        "tasks solved by type",
        EPISODES,
        "task_id",
        lambda record: float(record["success"]),
        lambda record: record["task_type"],
    ),
    "next_action": FigureKind("expert's next action, all states", NEXT_ACTIONS, "state_id", _right),
    "next_action_inferable": FigureKind(
        "expert's next action, inferable states", NEXT_ACTIONS, "state_id", _right_inferable
    ),
    "choice": FigureKind("better action chosen, all pairs", CHOICES, "pair_id", _right),
    "choice_inferable": FigureKind("better action chosen, inferable pairs", CHOICES, "pair_id", _right_inferable),
    "choice_by_position": FigureKind(
        "better action chosen by position",
        CHOICES,
        "pair_id",
        _right,
        lambda record: f"expert's action {place_name(record['expert_position'])}",
    ),
    "choice_by_margin": FigureKind(
        "better action chosen by margin", CHOICES, "pair_id", _right, lambda record: margin_name(record["margin"])
    ),
    "reasoning": FigureKind("verified answers, general reasoning", REASONING, "item", _right),
    "loops": FigureKind(
        f"episodes with one failed action {LOOP_LENGTH} times or more in a row",
        EPISODES,
        "task_id",
        lambda record: float(record["longest_failed_repeat"] >= LOOP_LENGTH),
    ),
    "longest_failed_repeat": FigureKind(
        "longest run of one failed action, mean over episodes",
        EPISODES,
        "task_id",
        lambda record: float(record["longest_failed_repeat"]),
        binary=False,
        share=False,
    ),
    "reply_length": FigureKind(
        "tokens a turn",
        EPISODES,
        "task_id",
        lambda record: record["reply_tokens"] / record["steps"] if "reply_tokens" in record else None,
        binary=False,
        share=False,
    ),
    "useful_tokens": FigureKind(
        "tokens in replies that gave an admissible action", EPISODES, "task_id", _useful, binary=False
    ),
}


def read_values(folder: Path) -> Values:
    """All figures of the evaluation in `folder`, of its finished episodes and its answers.

    Raises `DataError` where an item comes twice.
    """
    found: Values = {}
    records = {file: finished(list(_records(folder / file))) for file in (EPISODES, NEXT_ACTIONS, CHOICES, REASONING)}
    for name, kind in FIGURES.items():
        for record in records[kind.file]:
            value = kind.value(record)
            if value is None:
                continue
            items = found.setdefault((record["split"], name, kind.group(record)), {})
            item = f"{record['split']}/{record[kind.item]}"
            if item in items:
                raise DataError(f"{folder / kind.file}: item {item} comes twice; run the evaluation again.")
            items[item] = value
    return found


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open() as stream:
            yield from map(json.loads, stream)
