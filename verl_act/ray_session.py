"""Ray for this package's commands; verl starts its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the duration of the block: the cluster at $RAY_ADDRESS, or else a new local one.

    Other clusters on this machine are ignored: they may belong to other users or packages. A session that the caller
    has started is reused and kept alive.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address=None if "RAY_ADDRESS" in os.environ else "local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()
