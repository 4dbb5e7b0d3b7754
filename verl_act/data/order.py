"""In which order a pair's two actions are shown: balanced exactly, and the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def expert_first(pair_ids: Sequence[str], seed: int, epoch: int = 0) -> np.ndarray:
    """Whether each pair shows the expert's action first; bool, shape [pairs].

    The pairs are ranked by a hash of (seed, pair id), and ranks alternate: half of the pairs (give or take one) show
    the expert's action first, and nothing depends on the order of files or rows. Each next epoch turns every pair
    round, so two epochs show both orders.
    """
    keys = [hashlib.blake2b(f"{seed}:{pair_id}".encode(), digest_size=8).digest() for pair_id in pair_ids]
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return (ranks + epoch) % 2 == 0
