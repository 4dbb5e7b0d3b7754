"""Statistics over items and seeds: estimates with intervals, and paired tests on the same items."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import NamedTuple

import numpy as np

from verl_act.evaluate.resample import difference_interval, ratio_interval, sign_flip_p, sums_by_task
from verl_act.extras import needs_extra

with needs_extra("report"):
    from scipy.stats import ttest_1samp, ttest_ind

SIGNIFICANT = 0.05
"""A p below this is called clear."""
_FEW_TASKS = 5
_SAME = 1e-12
"""Values that differ by less are equal except for rounding."""


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
    deviation, None for one seed. Without items, `value`, `low` and `high` are None.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int
    by_seed: list[float]
    deviation: float | None


@dataclass(frozen=True, slots=True)
class Against:
    """The difference of two methods on the same `items`, with its 95% interval over tasks.

    There is no interval if all tasks differ by the same amount. `gained` and `lost` count the items on which the first
    method has more and less. `p_tasks` is the two-sided p of "no difference" over tasks, given these trained models;
    `p_seeds` is that of Welch's t-test over the seeds' values, None if neither method has two seeds. `p` is the larger
    of both, adjusted for all tests of a table; None if the metric is not tested or a training has one seed.
    """

    difference: float
    low: float | None
    high: float | None
    items: int
    gained: int
    lost: int
    p_tasks: float
    p_seeds: float | None
    p: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether it holds for other tasks, given these trained models: `p_tasks` is below 5% and the interval, if
        there is one, excludes 0."""
        excludes_zero = self.low is None or self.high is None or self.low > 0 or self.high < 0
        return self.p_tasks < SIGNIFICANT and excludes_zero


def estimate(seeds: Sequence[Items], is_share: bool) -> Estimate:
    """Estimate one metric of one method; `seeds` has one mapping per seed.

    A share gets the interval of `share_interval`, all other metrics a bootstrap over tasks.
    """
    means = item_means(seeds)
    by_seed = _by_seed(seeds, means)
    value = _ratio(means)
    if value is None:
        return Estimate(None, None, None, 0, by_seed, None)
    tasks = _tasks(means)
    amounts, sizes = (column.tolist() for column in _columns(means))
    interval = share_interval(amounts, tasks) if is_share else ratio_interval(amounts, sizes, tasks)
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
    tasks = _tasks(first_items)
    low, high = difference_interval((amounts, sizes), (their_amounts, their_sizes), tasks) or (None, None)
    return Against(
        difference=first_ratio - second_ratio,
        low=low,
        high=high,
        items=int(((sizes > 0) | (their_sizes > 0)).sum()),
        gained=int((differences > _SAME).sum()),
        lost=int((differences < -_SAME).sum()),
        p_tasks=sign_flip_p(sums_by_task(differences, tasks)),
        p_seeds=seed_p(_by_seed(first, both), _by_seed(second, both)),
    )


def _by_seed(seeds: Sequence[Items], common: Iterable[str]) -> list[float]:
    """The metric of every seed that has it, over the items that all seeds have."""
    common = list(common)
    ratios = (_ratio({item: items[item] for item in common if item in items}) for items in seeds)
    return [ratio for ratio in ratios if ratio is not None]


def seed_p(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The two-sided p of Welch's t-test of the values of two methods by seed.

    A method with one value, such as an untrained model, counts as known exactly. None if both have one value.
    """
    if max(len(first), len(second)) < 2 or not min(len(first), len(second)):
        return None
    if max(np.ptp(first), np.ptp(second)) < _SAME:
        return float(abs(first[0] - second[0]) < _SAME)
    if min(len(first), len(second)) == 1:
        several, (one,) = (first, second) if len(second) == 1 else (second, first)
        return float(ttest_1samp(several, one).pvalue)
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below 0.05 at a family-wise error rate of 5%."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def wilson_interval(successes: float, count: float) -> tuple[float, float]:
    """The 95% Wilson score interval of a share; (0, 1) if `count` is 0."""
    if count == 0:
        return 0.0, 1.0
    share, z = successes / count, 1.96
    middle = share + z * z / (2 * count)
    spread = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


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
