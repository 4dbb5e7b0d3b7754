"""Intervals and tests by resampling, with SciPy and a fixed seed: the same answers give the same results.

Tasks are resampled, not items: the states of one game share its rooms and its goal, so 200 pairs from 36 games carry
less information than 200 games.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from verl_act.extras import needs_extra

with needs_extra("report"):
    from scipy.stats import DegenerateDataWarning, binomtest, bootstrap, permutation_test

_RESAMPLES = 2000
_PERMUTATIONS = 9999


def ratio_interval(
    amounts: Sequence[float], sizes: Sequence[float], tasks: Sequence[Hashable]
) -> tuple[float, float] | None:
    """The 95% percentile bootstrap interval of sum(amounts) / sum(sizes), which is a mean if all sizes are 1.

    None if there is only one task or all tasks have the same ratio: resampling would give an interval of zero width.
    """
    above, below = (sums_by_task(values, tasks) for values in (amounts, sizes))
    above, below = above[below > 0], below[below > 0]
    if len(above) < 2 or np.allclose(above / below, above[0] / below[0], rtol=1e-12, atol=0):
        return None
    return _percentiles((above, below), lambda over, under, axis: over.sum(axis) / under.sum(axis))


def difference_interval(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    tasks: Sequence[Hashable],
) -> tuple[float, float] | None:
    """The 95% percentile bootstrap interval of the difference of two ratios of sums on the same items.

    `first` and `second` are (amounts, sizes); each resampled task counts for both. None if there is only one task or
    all tasks differ by the same amount: resampling would give an interval of zero width.
    """
    columns = [sums_by_task(values, tasks) for values in (*first, *second)]
    above, below, their_above, their_below = columns
    if len(above) < 2 or np.allclose(above * their_below, their_above * below):
        return None
    if min(below.min(), their_below.min()) > 0 and np.ptp(above / below - their_above / their_below) < 1e-12:
        return None

    def difference(*resampled: np.ndarray, axis: int) -> np.ndarray:
        above, below, their_above, their_below = (values.sum(axis) for values in resampled)
        result: np.ndarray = above / below - their_above / their_below
        return result

    low, high = _percentiles(columns, difference)
    return (low, high) if np.isfinite([low, high]).all() else None


def _percentiles(columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of a statistic of columns with one entry per task, resampled together."""
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        # A resample without any item of a metric has no value; the callers check for it.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        interval = bootstrap(
            columns,
            statistic,
            paired=True,
            n_resamples=_RESAMPLES,
            batch=100,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def sign_flip_p(differences: np.ndarray) -> float:
    """The two-sided p of "no difference", from one difference per task: the signs are flipped at random.

    Under the null hypothesis the two sides are exchangeable on every task. If every difference is -1, 0 or 1, this is
    McNemar's exact test.
    """
    discordant = differences[np.abs(differences) > 1e-12]
    if not len(discordant):
        return 1.0
    if np.isin(discordant, (-1.0, 1.0)).all():
        return float(binomtest(int((discordant > 0).sum()), len(discordant)).pvalue)
    if len(discordant) == 1:  # either sign is as extreme; SciPy needs two observations
        return 1.0
    result = permutation_test(
        (discordant,),
        np.sum,
        permutation_type="samples",
        n_resamples=_PERMUTATIONS,
        batch=500,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def sums_by_task(values: Sequence[float] | np.ndarray, tasks: Sequence[Hashable]) -> np.ndarray:
    """The sum of each task's values, in order of the tasks' first occurrence; shape (tasks,)."""
    sums: dict[Hashable, float] = {}
    for value, task in zip(values, tasks, strict=True):
        sums[task] = sums.get(task, 0.0) + value
    return np.array(list(sums.values()))
