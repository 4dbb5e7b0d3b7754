"""Compute the metrics of an evaluation: pure functions over lists of records."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import groupby
from math import sqrt
from statistics import fmean
from typing import Any

from verl_act.evaluate.resample import ratio_interval, sums_by_task
from verl_act.rollout.episode import End

Record = Mapping[str, Any]
_FEW_TASKS = 5
LOOP_LENGTH = 3
"""How many times a failed action must be repeated to count as a loop (paper section 5)."""
MARGINS = ((1, "1"), (2, "2"), (4, "3–4"), (8, "5–8"))
"""Upper bounds of the margin groups, and their names."""


def wilson_interval(successes: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share (95% by default); (0, 1) if `count` is 0."""
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    middle = share + z * z / (2 * count)
    spread = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def share(records: Sequence[Record], holds: str) -> dict[str, Any]:
    """The share of items with a true `holds`, as `{"share", "count", "low", "high"}`; see `share_interval`.

    A record is an item, except that the records of one pair, in several orders, count as one: their mean.
    """
    items: dict[Hashable, list[Record]] = {}
    for index, record in enumerate(records):
        items.setdefault((record["split"], record["pair_id"]) if "pair_id" in record else index, []).append(record)
    outcomes = [fmean(bool(record[holds]) for record in group) for group in items.values()]
    low, high = share_interval(outcomes, tasks_of([group[0] for group in items.values()]))
    return {"share": fmean(outcomes) if outcomes else None, "count": len(outcomes), "low": low, "high": high}


def share_interval(holds: Sequence[float], tasks: Sequence[Hashable]) -> tuple[float, float]:
    """Wilson's 95% interval of the mean of `holds` (0 or 1, or means of those over seeds), with `effective_count` as
    the number of independent items."""
    if not holds:
        return wilson_interval(0, 0)
    count = effective_count(holds, tasks)
    return wilson_interval(fmean(holds) * count, count)


def effective_count(holds: Sequence[float], tasks: Sequence[Hashable]) -> float:
    """The number of independent items that would give the mean of `holds` its variance between tasks; at most the
    number of items. If fewer than five tasks have one of the two results, the variance cannot be estimated and each
    task counts as one item.
    """
    mean, items = fmean(holds), len(holds)
    sums, sizes = sums_by_task(holds, tasks), sums_by_task([1.0] * items, tasks)
    if len(sums) == items or min((sums > 0).sum(), (sums < sizes).sum()) < _FEW_TASKS:
        return len(sums)
    variance = float(((sums - mean * sizes) ** 2).sum()) / items**2
    return min(items, mean * (1 - mean) / variance) if variance else items


def tasks_of(records: Sequence[Record]) -> list[Hashable]:
    """The task of each record; its index if the record does not name a task."""
    return [record.get("task_id", index) for index, record in enumerate(records)]


def score(records: Sequence[Record]) -> dict[str, Any] | None:
    """The mean of the episodes' rewards with a bootstrap interval; None if a record has no score."""
    if not records or not all("score" in record for record in records):
        return None
    scores = [float(record["score"]) for record in records]
    low, high = ratio_interval(scores, [1.0] * len(scores), tasks_of(records)) or (None, None)
    return {"mean": fmean(scores), "count": len(scores), "low": low, "high": high}


def episode_metrics(records: Sequence[Record]) -> dict[str, Any]:
    """Metrics of finished episodes: success (all, and by task type), steps, and how the model failed.

    `errors` counts the episodes in which the environment failed.
    `score` is an episode's reward in the unit of its environment: at most 1 in those that come with the package.
    `steps_to_success` covers successful episodes only; `loop_share` is the share of episodes in which one failed action
    was repeated three times or more (the loop metric of paper section 5). `thought_share` is the share of an episode's
    replies that reason before they answer; None if no record has it.
    """
    everything, records = records, finished(records)
    won = [record for record in records if record["success"]]
    return {
        "errors": len(everything) - len(records),
        "success": share(records, "success"),
        "score": score(records),
        "by_task_type": {name: share(group, "success") for name, group in grouped(records, "task_type")},
        "steps": _mean(record["steps"] for record in records),
        "steps_to_success": _mean(record["steps"] for record in won),
        "inadmissible_share": _mean(record["inadmissible_share"] for record in records),
        "malformed_share": _mean(record["malformed_share"] for record in records),
        "thought_share": _mean(record["thought_share"] for record in records if "thought_share" in record),
        "longest_failed_repeat": max((record["longest_failed_repeat"] for record in records), default=0),
        "loop_share": _mean(record["longest_failed_repeat"] >= LOOP_LENGTH for record in records),
    }


def finished(records: Sequence[Record]) -> list[Record]:
    """Episodes that did not end in an environment error; the others say nothing about the model."""
    return [record for record in records if record.get("end") != End.ERROR]


def answer_metrics(records: Sequence[Record]) -> dict[str, Any]:
    """Metrics of single answers (next actions or choices): right ones among all and inferable states, and their format.

    `admissible` is the share whose action, or chosen candidate, is admissible in the state. `thought` is the share of
    replies that reason before they answer, among records that have this key. Choices are asked in all orders:
    `right` is the mean over them, `consistent` the share of pairs with the same action chosen in all.
    """
    metrics = {
        "right": share(records, "right"),
        "right_inferable": share([record for record in records if record["inferable"]], "right"),
        "well_formed": share(records, "well_formed"),
        "thought": share([record for record in records if "thought" in record], "thought"),
        "admissible": share(records, "admissible"),
        "by_verb": {name: share(group, "right") for name, group in grouped(records, "verb")},
    }
    if records and "expert_position" in records[0]:
        metrics["named_a_candidate"] = share(records, "named_a_candidate")
        metrics["consistent"] = share(records, "consistent")
        metrics["position_bias"] = position_bias(records)
        metrics["by_position"] = {
            str(position): share(group, "right") for position, group in grouped(records, "expert_position")
        }
    return metrics


def position_bias(records: Sequence[Record]) -> dict[str, Any]:
    """How much more often than by its share the first candidate is chosen, with a bootstrap interval: the share of
    first ones among choices that name a candidate, minus one half (with k candidates, one k-th)."""
    named = [record for record in records if record["named_a_candidate"]]
    excess = [first_excess(record) for record in named]
    low, high = ratio_interval(excess, [1.0] * len(excess), tasks_of(named)) or (None, None)
    return {"mean": fmean(excess) if excess else None, "count": len(excess), "low": low, "high": high}


def first_excess(record: Record) -> float:
    """1 if the first candidate was chosen, else 0, minus what chance gives."""
    return float(record["chosen"] == 0) - 1 / len(record["candidates"])


def margin_name(margin: int | None) -> str:
    """The group that a pair's margin belongs to."""
    if margin is None:
        return "unknown"
    if margin <= 0:
        return "≤ 0"
    return next((name for most, name in MARGINS if margin <= most), "9+")


def position_name(position: int) -> str:
    """The group of pairs with the expert's action at `position`, counted from 0."""
    names = ("first", "second", "third")
    return names[position] if position < len(names) else "after the third"


def by_split(records: Sequence[Record], compute: Callable[[Sequence[Record]], dict[str, Any]]) -> dict[str, Any]:
    """`compute` of each split's records."""
    return {split: compute(group) for split, group in grouped(records, "split")}


def grouped(records: Sequence[Record], column: str) -> list[tuple[Any, list[Record]]]:
    """Records by the value of a column, in the order of the values."""
    ordered = sorted(records, key=lambda record: record[column])
    return [(value, list(group)) for value, group in groupby(ordered, key=lambda record: record[column])]


def _mean(values: Iterable[float]) -> float | None:
    listed = [float(value) for value in values]
    return fmean(listed) if listed else None
