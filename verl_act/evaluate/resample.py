"""Intervals and tests by resampling, with SciPy and a fixed seed: the same answers give the same figures.

What is resampled are tasks, not items: the states of one game share its rooms and its goal, so that two hundred pairs
of thirty-six games say less than two hundred games would.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test

_RESAMPLES = 2000
_PERMUTATIONS = 9999


def ratio_interval(
    amounts: Sequence[float], sizes: Sequence[float], tasks: Sequence[Hashable]
) -> tuple[float, float] | None:
    """The 95% percentile bootstrap interval of sum(amounts) / sum(sizes), which is a mean where all sizes are 1.

    None where there is one task, or all tasks have the same ratio, which resampling cannot tell from certainty.
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
    """The 95% percentile bootstrap interval of one ratio of sums minus another, (amounts, sizes) each, of the same
    items: a task is drawn for both. None where there is one task or nothing differs between them.
    """
    columns = [sums_by_task(values, tasks) for values in (*first, *second)]
    if len(columns[0]) < 2 or np.allclose(columns[0] * columns[3], columns[2] * columns[1]):
        return None

    def difference(*resampled: np.ndarray, axis: int) -> np.ndarray:
        above, below, their_above, their_below = (values.sum(axis) for values in resampled)
        return above / below - their_above / their_below

    low, high = _percentiles(columns, difference)
    return (low, high) if np.isfinite([low, high]).all() else None


def _percentiles(columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of a statistic of columns with one entry a task, drawn together."""
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
    """The two-sided p of "no difference", from one difference a task: the signs are flipped at random.

    Under the null hypothesis the two sides could change places on any task. Where every difference is -1, 0 or 1, this
    is McNemar's exact test.
    """
    discordant = differences[np.abs(differences) > 1e-12]
    if not len(discordant):
        return 1.0
    if np.isin(discordant, (-1.0, 1.0)).all():
        return float(binomtest(int((discordant > 0).sum()), len(discordant)).pvalue)
    if len(discordant) == 1:  # either sign is as extreme; SciPy wants two observations
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
    """The sum of each task's values, in the order in which the tasks first come."""
    sums: dict[Hashable, float] = {}
    for value, task in zip(values, tasks, strict=True):
        sums[task] = sums.get(task, 0.0) + value
    return np.array(list(sums.values()))
