"""In which order a pair's actions are shown: balanced exactly, and the same on every machine."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def expert_positions(
    pair_ids: Sequence[str],
    candidates: Sequence[int],
    seed: int,
    epoch: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Where each pair shows the expert's action among its `candidates` (2 or more), from 0; int64, shape [pairs].

    The pairs of one group (`groups` names that of each pair; without it they are all one) and one number of candidates
    are ranked by a hash of (seed, pair id), and their positions go round with the rank: each comes equally often (give
    or take one), and nothing depends on the order of files or rows. Among some of a group it comes as chance has it. In
    the next epoch every pair shows the next position, so as many epochs as candidates show all of them.
    """
    keys = [hashlib.blake2b(f"{seed}:{pair_id}".encode(), digest_size=8).digest() for pair_id in pair_ids]
    ranked: defaultdict[tuple[Hashable, int], list[int]] = defaultdict(list)
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        ranked[groups[index] if groups else None, candidates[index]].append(index)
    positions = np.empty(len(keys), dtype=np.int64)
    for (_, count), indices in ranked.items():
        positions[indices] = (np.arange(len(indices)) + epoch) % count
    return positions


def candidate_order(pair_id: str, expert_action: str, alternatives: Sequence[str], position: int) -> list[str]:
    """The candidates as they are shown, the expert's action at `position`; the others in an order that says nothing."""
    others = sorted(alternatives, key=lambda action: hashlib.sha256(f"{pair_id}:{action}".encode()).digest())
    return [*others[:position], expert_action, *others[position:]]
