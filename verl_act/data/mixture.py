"""Files in a fixed ratio: which row stands at which place of an epoch.

Seam: verl 0.9 has no `data.sampler` any more; its own samplers draw every place once an epoch, and are saved with
every checkpoint. So the ratio lies in the dataset: it holds exactly over an epoch, resumed or not, and no last batch is
cut off.
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
    """Every row has been shown; rows of the files that are short for their weight come several times."""
    FIRST_EXHAUSTED = "first_exhausted"
    """The first file is used up; no row comes twice, and some rows of the others not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings:
    """The block `data.act.mix`. Without weights, files are strung together as they are."""

    weights: tuple[float, ...] = ()
    """Rows of each file of `data.train_files`, in their order, against those of the others: [1, 3] is a quarter."""
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
    """(file, row) at each place of an epoch, for files of `sizes` rows.

    The files' counts are exactly in the ratio of the weights, and their sum is a multiple of `batch_size`. Read in
    order, every batch holds the ratio too, where whole numbers allow. Rows are drawn with `seed`; where rows must come
    again, none comes twice more often than another of its file.

    Raises `ConfigError` where the weights are not one per file, or a file is used up before the first batch.
    """
    units = settings.units()
    if len(units) != len(sizes):
        raise ConfigError(
            f"data.act.mix.weights has {len(units)} numbers for the {len(sizes)} files of data.train_files; "
            "give one for each."
        )
    # The shortest epoch in this ratio and in whole batches, and how many of it each file asks for.
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
    """`count` of `size` rows: shuffled again and again, the last time cut."""
    generator = np.random.default_rng((seed, file))
    rounds = [generator.permutation(size) for _ in range(math.ceil(count / size))]
    return np.concatenate(rounds)[:count].tolist()
