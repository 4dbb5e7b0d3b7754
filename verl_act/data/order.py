"""The order of a pair's candidates: exactly balanced, and the same on every machine."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def expert_positions(
    pair_ids: Sequence[str],
    candidates: Sequence[int],
    seed: int,
    epoch: int = 0,
) -> np.ndarray:
    """The position of the expert's action in each pair, from 0; int64, shape [pairs]. `candidates`: 2 or more a pair.

    Pairs of the same number of candidates are ranked by a hash of (seed, pair id), and positions cycle with the rank.
    Each position is thus equally frequent (give or take one), whatever the order of files and rows; within a subset it
    is random. Every epoch moves each pair to the next position, so all positions are seen in as many epochs as there
    are candidates.
    """
    keys = [hashlib.blake2b(f"{seed}:{pair_id}".encode(), digest_size=8).digest() for pair_id in pair_ids]
    ranked: defaultdict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        ranked[candidates[index]].append(index)
    positions = np.empty(len(keys), dtype=np.int64)
    for count, indices in ranked.items():
        positions[indices] = (np.arange(len(indices)) + epoch) % count
    return positions


def candidate_order(pair_id: str, expert_action: str, alternatives: Sequence[str], position: int) -> list[str]:
    """The candidates as shown: the expert's action at `position`, the others in an order given by a hash."""
    others = sorted(alternatives, key=lambda action: hashlib.sha256(f"{pair_id}:{action}".encode()).digest())
    return [*others[:position], expert_action, *others[position:]]


def candidate_rotations(pair_id: str, expert_action: str, alternatives: Sequence[str]) -> list[list[str]]:
    """The candidates in as many orders as there are candidates, each rotated by one: every candidate is at every
    position once. The first order depends on a hash of the pair id."""
    count = 1 + len(alternatives)
    start = int.from_bytes(hashlib.sha256(pair_id.encode()).digest()[:4]) % count
    first = candidate_order(pair_id, expert_action, alternatives, start)
    return [[*first[turn:], *first[:turn]] for turn in range(count)]
