"""Intervals and tests, from SciPy; Wilson's interval of a share is `evaluate.figures.share`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

from verl_act.evaluate.figures import share

Item = Hashable
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate with its 95% interval; `count` is the number of records. All None where there are none."""

    value: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same `items`: how many the second gained and lost against the first, and McNemar's exact p."""

    items: int
    gained: int
    lost: int
    difference: float
    """Share of the second minus share of the first, on these items."""
    p: float


def share_of(records: Sequence[Mapping[str, Any]], holds: str) -> Figure:
    """The share of records with a true `holds`, with Wilson's interval."""
    found = share(records, holds)
    if not records:
        return Figure(None, None, None, 0)
    return Figure(found["share"], found["low"], found["high"], found["count"])


def mean_of(values: Sequence[float], seed: int = 0) -> Figure:
    """The mean with its percentile bootstrap interval; none where all values are the same, which resampling keeps."""
    if not values:
        return Figure(None, None, None, 0)
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if (array == array[0]).all():
        return Figure(mean, None, None, len(array))
    found = bootstrap(
        (array,), np.mean, n_resamples=_RESAMPLES, batch=100, method="percentile", rng=np.random.default_rng(seed)
    )
    low, high = (float(bound) for bound in found.confidence_interval)
    return Figure(mean, low, high, len(array))


def paired(first: Mapping[Item, bool], second: Mapping[Item, bool]) -> Paired | None:
    """McNemar's exact test (two-sided binomial on the discordant items); None where no item is in both."""
    both = [(first[item], second[item]) for item in first if item in second]
    if not both:
        return None
    gained = sum(after and not before for before, after in both)
    lost = sum(before and not after for before, after in both)
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Paired(len(both), gained, lost, (gained - lost) / len(both), p)
