"""Mixes files in a fixed ratio: which row comes at which position of an epoch.

Seam: verl 0.9 no longer has `data.sampler`; its own samplers use every position once an epoch and are saved with every
checkpoint. The dataset therefore implements the ratio: it holds exactly over an epoch, resumed or not, and no partial
batch is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from verl_act.config.settings import MixtureSettings, StoppingStrategy
from verl_act.errors import ConfigError


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
