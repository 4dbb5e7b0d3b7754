"""Statistics over items and seeds: estimates with intervals, and paired tests on the same items."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from verl_act.evaluate.metrics import share_interval
from verl_act.evaluate.resample import difference_interval, ratio_interval, sign_flip_p, sums_by_task


class ItemOutcome(NamedTuple):
    """What one item contributes to a metric, which is the sum of the amounts over the sum of the sizes.

    `task` groups items that are not independent; None for an independent item.
    """

    amount: float
    size: float = 1.0
    task: Hashable = None


Items = Mapping[str, ItemOutcome]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of the items' means over seeds, with its 95% interval over tasks.

    `items` is how many items count; `by_seed` has the metric of each seed, and `deviation` is their sample standard
    deviation, None for one seed.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int
    by_seed: list[float]
    deviation: float | None


@dataclass(frozen=True, slots=True)
class Against:
    """The difference of two methods on the same `items`, with its 95% interval and the two-sided p of "no difference",
    both over tasks; no interval if all tasks differ by the same amount."""

    difference: float
    items: int
    p: float
    low: float | None = None
    high: float | None = None


def estimate(seeds: Sequence[Items], binary: bool) -> Estimate:
    """Estimate one metric of one method; `seeds` has one mapping per seed.

    `binary` metrics get the interval of `metrics.share_interval`, all others a bootstrap over tasks.
    """
    by_seed = [ratio for items in seeds if (ratio := _ratio(items)) is not None]
    means = item_means(seeds)
    value = _ratio(means)
    if value is None:
        return Estimate(None, None, None, 0, by_seed, None)
    tasks = _tasks(means)
    amounts, sizes = (column.tolist() for column in _columns(means))
    interval = share_interval(amounts, tasks) if binary else ratio_interval(amounts, sizes, tasks)
    low, high = interval or (None, None)
    deviation = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    return Estimate(value, low, high, sum(size > 0 for size in sizes), by_seed, deviation)


def against(first: Sequence[Items], second: Sequence[Items]) -> Against | None:
    """`first` minus `second` on the items that both have, paired by task; None if the metric of either is undefined.

    For a ratio of sums, a task's difference is the difference of the amounts minus what the difference of the sizes
    explains at the common ratio.
    """
    first_items, second_items = item_means(first), item_means(second)
    both = sorted(first_items.keys() & second_items.keys())
    first_items, second_items = ({item: side[item] for item in both} for side in (first_items, second_items))
    first_ratio, second_ratio = _ratio(first_items), _ratio(second_items)
    if first_ratio is None or second_ratio is None:
        return None
    (amounts, sizes), (their_amounts, their_sizes) = _columns(first_items), _columns(second_items)
    common = (amounts.sum() + their_amounts.sum()) / (sizes.sum() + their_sizes.sum())
    differences = (amounts - their_amounts) - common * (sizes - their_sizes)
    counted = int(((sizes > 0) | (their_sizes > 0)).sum())
    p = sign_flip_p(sums_by_task(differences, _tasks(first_items)))
    interval = difference_interval((amounts, sizes), (their_amounts, their_sizes), _tasks(first_items))
    return Against(first_ratio - second_ratio, counted, p, *(interval or (None, None)))


def item_means(seeds: Sequence[Items]) -> dict[str, ItemOutcome]:
    """Item -> mean over the seeds; only items that every seed has, so that all have the same weight."""
    common = set.intersection(*(set(items) for items in seeds)) if seeds else set()
    return {item: mean_outcome([items[item] for items in seeds]) for item in sorted(common)}


def mean_outcome(outcomes: Sequence[ItemOutcome]) -> ItemOutcome:
    """The mean of one item's outcomes, over seeds or orders."""
    amount, size = (float(np.mean([outcome[column] for outcome in outcomes])) for column in (0, 1))
    return ItemOutcome(amount, size, outcomes[0].task)


def _ratio(items: Items) -> float | None:
    amounts, sizes = _columns(items)
    return float(amounts.sum() / sizes.sum()) if sizes.sum() else None


def _columns(items: Items) -> tuple[np.ndarray, np.ndarray]:
    outcomes = list(items.values())
    return np.array([outcome.amount for outcome in outcomes]), np.array([outcome.size for outcome in outcomes])


def _tasks(items: Items) -> list[Hashable]:
    return [name if outcome.task is None else outcome.task for name, outcome in items.items()]
