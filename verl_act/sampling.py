"""Deterministic sampling by name: the same on every machine, whatever the file or order."""

from __future__ import annotations

import hashlib


def sampling_key(seed: int, name: str) -> bytes:
    """A sort key that gives names a random order, which depends only on `seed`."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
