"""Statistics over items and seeds, by SciPy: estimates with intervals, and paired tests on the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test

from verl_act.evaluate.figures import wilson_interval

Items = Mapping[str, float]
_RESAMPLES = 2000
_PERMUTATIONS = 9999


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean over items of their means over seeds, with its 95% interval over items.

    `by_seed` are the seeds' own means and `deviation` their sample standard deviation; None for one seed.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int
    by_seed: list[float]
    deviation: float | None


@dataclass(frozen=True, slots=True)
class Against:
    """A method minus another on the same `items`, and the two-sided p of "no difference"."""

    difference: float
    items: int
    p: float


def estimate(seeds: Sequence[Items], binary: bool) -> Estimate:
    """Of one figure of one method, one mapping a seed. One seed of shares gets Wilson's interval, else a bootstrap over
    items; none where all items are alike, which resampling cannot tell from certainty.
    """
    means = item_means(seeds)
    own = [float(np.mean(list(items.values()))) for items in seeds if items]
    if not means:
        return Estimate(None, None, None, 0, [], None)
    values = np.array(list(means.values()))
    deviation = float(np.std(own, ddof=1)) if len(own) > 1 else None
    low, high = _interval(values, binary and len(own) == 1)
    return Estimate(float(values.mean()), low, high, len(values), own, deviation)


def against(first: Sequence[Items], second: Sequence[Items]) -> Against | None:
    """`first` minus `second`, paired by item; None where they have no item in common.

    With one seed each and 0/1 values this is McNemar's exact test. Otherwise signs of the items' differences are
    flipped at random: under the null hypothesis the two methods could change places on any item.
    """
    ours, theirs = item_means(first), item_means(second)
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    differences = np.array([ours[item] - theirs[item] for item in both])
    return Against(float(differences.mean()), len(both), _p(differences))


def item_means(seeds: Sequence[Items]) -> dict[str, float]:
    """Item -> mean over the seeds; only items that every seed has, so that all are weighed alike."""
    common = set.intersection(*(set(items) for items in seeds)) if seeds else set()
    return {item: float(np.mean([items[item] for items in seeds])) for item in sorted(common)}


def _interval(values: np.ndarray, shares: bool) -> tuple[float | None, float | None]:
    if shares:
        return wilson_interval(int(values.sum()), len(values))
    if (values == values[0]).all():
        return None, None
    rng = np.random.default_rng(0)
    found = bootstrap((values,), np.mean, n_resamples=_RESAMPLES, batch=100, method="percentile", rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _p(differences: np.ndarray) -> float:
    discordant = differences[differences != 0]
    if not len(discordant):
        return 1.0
    if np.isin(discordant, (-1.0, 1.0)).all():
        return float(binomtest(int((discordant > 0).sum()), len(discordant)).pvalue)
    if len(discordant) == 1:  # either sign is as extreme; SciPy wants two observations
        return 1.0
    found = permutation_test(
        (discordant,),
        np.sum,
        permutation_type="samples",
        n_resamples=_PERMUTATIONS,
        batch=500,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)
