"""The metrics of a comparison: how each is computed from the records of an evaluation, one result per item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.evaluate.files import CHOICES, EPISODES, NEXT_ACTIONS, REASONING
from verl_act.evaluate.metrics import LOOP_LENGTH, finished, first_excess, margin_name, position_name
from verl_act.evaluate.records import read_records
from verl_act.evaluate.statistics import ItemOutcome, mean_outcome

Record = Mapping[str, Any]
Values = dict[tuple[str, str, str], dict[str, ItemOutcome]]
"""(split, metric, group) -> item -> its result; the group is empty for all items."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: the sum of `amount` over the sum of `size`, which is the mean over items if `size` is 1.

    `file` holds its records and `item` is the key of the item's id. A record whose `amount` is None is left out.
    `binary`: amounts are 0 or 1 and sizes 1. `share`: shown in percent.
    """

    title: str
    file: str
    item: str
    amount: Callable[[Record], float | None]
    size: Callable[[Record], float] = lambda record: 1.0
    group: Callable[[Record], str] = lambda record: ""
    binary: bool = False
    share: bool = False


def _share(title: str, file: str, amount: Callable[[Record], float | None], **more: Any) -> MetricSpec:
    """The share of items whose `amount` is 1."""
    return MetricSpec(title, file, _ITEMS[file], amount, binary=True, share=True, **more)


def _mean(title: str, column: str, share: bool = False) -> MetricSpec:
    """The mean of a column over episodes; records without the column are left out."""
    return MetricSpec(title, EPISODES, "task_id", lambda record: record.get(column), share=share)


def _of_episodes(title: str, amount: str, size: str, share: bool = False) -> MetricSpec:
    """The sum of a column over the sum of another, over episodes; records without `amount` are left out."""
    return MetricSpec(
        title, EPISODES, "task_id", lambda record: record.get(amount), lambda record: record[size], share=share
    )


def _success(record: Record) -> float:
    return float(record["success"])


def _right(record: Record) -> float:
    return float(record["right"])


def _right_inferable(record: Record) -> float | None:
    return float(record["right"]) if record["inferable"] else None


def _named(record: Record) -> float:
    return float(record["named_a_candidate"])


def _named_inferable(record: Record) -> float | None:
    return _named(record) if record["inferable"] else None


_ITEMS = {EPISODES: "task_id", NEXT_ACTIONS: "state_id", CHOICES: "pair_id", REASONING: "item"}


def _consistent(record: Record) -> float:
    return float(record["consistent"])


def _first_excess(record: Record) -> float:
    return first_excess(record) if record["named_a_candidate"] else 0.0


METRICS: dict[str, MetricSpec] = {
    "success": _share("tasks solved", EPISODES, _success),
    "success_by_type": _share("tasks solved by type", EPISODES, _success, group=lambda record: record["task_type"]),
    "score": _mean("score, the sum of an episode's rewards", "score"),
    "next_action": _share("expert's next action, all states", NEXT_ACTIONS, _right),
    "next_action_inferable": _share("expert's next action, inferable states", NEXT_ACTIONS, _right_inferable),
    "choice": _share("better action chosen, all pairs", CHOICES, _right),
    "choice_inferable": _share("better action chosen, inferable pairs", CHOICES, _right_inferable),
    "named_inferable": _share("one of the candidates named, inferable pairs", CHOICES, _named_inferable),
    "choice_of_named_inferable": MetricSpec(
        "better action chosen where one was named, inferable pairs",
        CHOICES,
        "pair_id",
        _right_inferable,
        _named,
        share=True,
    ),
    "choice_by_position": _share(
        "better action chosen by position",
        CHOICES,
        _right,
        group=lambda record: f"expert's action {position_name(record['expert_position'])}",
    ),
    "choice_consistent": _share("same action chosen in every order, all pairs", CHOICES, _consistent),
    "position_bias": MetricSpec(
        "first candidate chosen, minus one in the number of candidates, of the named",
        CHOICES,
        "pair_id",
        _first_excess,
        _named,
        share=True,
    ),
    "choice_by_margin": _share(
        "better action chosen by margin", CHOICES, _right, group=lambda record: margin_name(record["margin"])
    ),
    "reasoning": _share("verified answers, general reasoning", REASONING, _right),
    "steps": _mean("turns an episode, solved or not", "steps"),
    "steps_to_success": MetricSpec(
        "turns to the goal, solved episodes only",
        EPISODES,
        "task_id",
        lambda record: record["steps"] * _success(record),
        _success,
    ),
    "inadmissible_share": _mean("inadmissible actions, share of an episode's turns", "inadmissible_share", share=True),
    "malformed_share": _mean("malformed replies, share of an episode's turns", "malformed_share", share=True),
    "loops": _share(
        f"episodes with one failed action {LOOP_LENGTH} times or more in a row",
        EPISODES,
        lambda record: float(record["longest_failed_repeat"] >= LOOP_LENGTH),
    ),
    "longest_failed_repeat": _mean("longest run of one failed action, mean over episodes", "longest_failed_repeat"),
    "reply_length": _of_episodes("tokens a turn", "reply_tokens", "steps"),
    "useful_tokens": _of_episodes(
        "tokens in replies that gave an admissible action", "useful_tokens", "reply_tokens", share=True
    ),
}


def read_metrics(folder: Path) -> Values:
    """All metrics of the evaluation in `folder`, from its finished episodes and its answers.

    The orders of a choice are one item, with their mean. Raises `DataError` if an item occurs twice or a file is
    damaged.
    """
    outcomes: dict[tuple[str, str, str], dict[str, dict[int, ItemOutcome]]] = {}
    records = {file: finished(rows) for file, rows in read_records(folder).items()}
    for name, kind in METRICS.items():
        for record in records[kind.file]:
            amount = kind.amount(record)
            if amount is None:
                continue
            items = outcomes.setdefault((record["split"], name, kind.group(record)), {})
            item, order = f"{record['split']}/{record[kind.item]}", record.get("order", 0)
            by_order = items.setdefault(item, {})
            if order in by_order:
                raise DataError(f"{folder / kind.file}: item {item} comes twice; run the evaluation again.")
            task = f"{record['split']}/{record['task_id']}" if "task_id" in record else None
            by_order[order] = ItemOutcome(float(amount), float(kind.size(record)), task)
    return {
        key: {item: mean_outcome(list(by_order.values())) for item, by_order in items.items()}
        for key, items in outcomes.items()
    }
