"""Deterministic sampling: by name, which is the same whatever the file or order, and from a list."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def sampling_key(seed: int, name: str) -> bytes:
    """A sort key that gives names a random order, which depends only on `seed`."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def sample_in_order(items: Sequence[Item], limit: int | None, seed: int | str) -> list[Item]:
    """At most `limit` of the items, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), limit))]
