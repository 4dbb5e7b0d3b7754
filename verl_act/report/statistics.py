"""Intervals and tests of single models, built on `evaluate.resample`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_act.evaluate.metrics import share, tasks_of
from verl_act.evaluate.resample import ratio_interval, sign_flip_p, sums_by_task

Item = Hashable


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric with its 95% interval over `count` records. All None, and `count` 0, without records."""

    value: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same items: how many the second gained and lost compared with the first, and the test's p."""

    items: int
    gained: int
    lost: int
    difference: float
    """Share of the second minus share of the first, on these items."""
    p: float


def share_of(records: Sequence[Mapping[str, Any]], holds: str) -> MetricValue:
    """The share of records with a true `holds`, with the interval of `evaluate.metrics.share_interval`."""
    result = share(records, holds)
    if not records:
        return MetricValue(None, None, None, 0)
    return MetricValue(result["share"], result["low"], result["high"], result["count"])


def ratio_of(records: Sequence[Mapping[str, Any]], amount: str, size: str | None = None) -> MetricValue:
    """The sum of a column over the sum of another, or its mean, with a bootstrap interval over tasks.

    Only records that have the columns count. There is no interval if all tasks have the same ratio.
    """
    known = [record for record in records if amount in record and (size is None or record.get(size))]
    if not known:
        return MetricValue(None, None, None, 0)
    amounts = [float(record[amount]) for record in known]
    sizes = [1.0 if size is None else float(record[size]) for record in known]
    low, high = ratio_interval(amounts, sizes, tasks_of(known)) or (None, None)
    return MetricValue(sum(amounts) / sum(sizes), low, high, len(known))


def paired(
    first: Mapping[Item, bool], second: Mapping[Item, bool], tasks: Mapping[Item, Hashable] | None = None
) -> Paired | None:
    """McNemar's exact test, or random sign flips of tasks if `tasks` (item -> task) has several items per task.

    None if the two have no item in common.
    """
    both = [item for item in first if item in second]
    if not both:
        return None
    changes = [float(second[item]) - float(first[item]) for item in both]
    gained, lost = changes.count(1.0), changes.count(-1.0)
    p = sign_flip_p(sums_by_task(changes, [(tasks or {}).get(item, item) for item in both]))
    return Paired(len(both), gained, lost, (gained - lost) / len(both), p)
