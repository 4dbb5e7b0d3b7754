"""Mixes files in a fixed ratio: which row comes at which position of an epoch.

Seam: verl 0.9 no longer has `data.sampler`; its own samplers use every position once an epoch and are saved with every
checkpoint. The dataset therefore implements the ratio: it holds exactly over an epoch, resumed or not, and no partial
batch is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

import numpy as np

from verl_act.errors import ConfigError

_LARGEST_UNIT = 10_000


class StoppingStrategy(StrEnum):
    """When an epoch ends; the names are those of `datasets.interleave_datasets`."""

    ALL_EXHAUSTED = "all_exhausted"
    """Every row has been shown; files that are short for their weight repeat rows."""
    FIRST_EXHAUSTED = "first_exhausted"
    """One file is used up; no row comes twice, and some rows of other files never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings:
    """The block `data.act.mix`. Without weights, files are concatenated."""

    weights: tuple[float, ...] = ()
    """Relative number of rows of each file of `data.train_files`, in their order: [1, 3] is a quarter of the first."""
    stopping_strategy: StoppingStrategy = StoppingStrategy.ALL_EXHAUSTED

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights or ()))
        object.__setattr__(self, "stopping_strategy", StoppingStrategy(self.stopping_strategy))
        for weight in self.weights:
            if not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ConfigError(f"data.act.mix.weights has {weight!r}; a weight is a number above 0.")
        if self.weights and sum(self.units()) > _LARGEST_UNIT:
            raise ConfigError(
                f"data.act.mix.weights are {list(self.weights)}: the smallest whole numbers in that ratio are "
                f"{self.units()}, too large for an epoch. Round them."
            )

    def units(self) -> list[int]:
        """The weights as the smallest whole numbers in their ratio."""
        exact = [Fraction(str(weight)) for weight in self.weights]
        whole = [int(weight * math.lcm(*(other.denominator for other in exact))) for weight in exact]
        return [count // math.gcd(*whole) for count in whole]


def mix(sizes: Sequence[int], settings: MixtureSettings, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """(file index, row index) at each position of an epoch, for files of `sizes` rows.

    The counts of the files are exactly in the ratio of the weights, and their sum is a multiple of `batch_size`. In
    order, every batch has that ratio too, up to rounding. Rows are shuffled with `seed`; if a file repeats rows, their
    counts differ by one at most.

    Raises `ConfigError` without one weight per file, or if a file is used up before the first batch.
    """
    units = settings.units()
    if len(units) != len(sizes):
        raise ConfigError(
            f"data.act.mix.weights has {len(units)} numbers for the {len(sizes)} files of data.train_files; "
            "give one for each."
        )
    # The shortest epoch in this ratio and in whole batches, and for how many of these each file lasts.
    shortest = math.lcm(sum(units), batch_size) // sum(units)
    epochs = [Fraction(size, unit * shortest) for size, unit in zip(sizes, units, strict=True)]
    all_rows = settings.stopping_strategy is StoppingStrategy.ALL_EXHAUSTED
    times = math.ceil(max(epochs)) if all_rows else math.floor(min(epochs))
    if not times:
        needed = [unit * shortest for unit in units]
        raise ConfigError(
            f"data.act.mix: batches of {batch_size} in the ratio {units} need at least {needed} rows of the files, "
            f"which have {list(sizes)}. Use stopping_strategy=all_exhausted, a smaller batch or rounder weights."
        )
    positions: list[tuple[float, int, int]] = []
    for file, (size, unit) in enumerate(zip(sizes, units, strict=True)):
        count = unit * shortest * times
        positions += (
            ((index + 0.5) / count, file, row) for index, row in enumerate(_sampled_rows(size, count, seed, file))
        )
    return [(file, row) for _, file, row in sorted(positions)]


def _sampled_rows(size: int, count: int, seed: int, file: int) -> list[int]:
    """`count` of `size` rows, from repeated shuffles; the last one is truncated."""
    generator = np.random.default_rng((seed, file))
    rounds = [generator.permutation(size) for _ in range(math.ceil(count / size))]
    rows: list[int] = np.concatenate(rounds)[:count].tolist()
    return rows
