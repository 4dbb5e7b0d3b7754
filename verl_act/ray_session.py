"""Ray for our own commands; verl starts its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the time of the block: the cluster at $RAY_ADDRESS, or else one of our own.

    A cluster that runs on this machine without being named is left alone: it may be of other users or packages. A
    session that the caller has begun is used, and goes on.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(address=None if "RAY_ADDRESS" in os.environ else "local", include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
