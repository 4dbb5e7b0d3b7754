"""What a command shows while it works: phases with a bar of what is done and the time left, and no messages across it.

The main phase of a command has a bar from its first second. The others, such as reading and writing its tables, take
long only with much data.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOG_FILE = "VERL_ACT_LOG_FILE"
"""Environment variable: the file for messages of other packages."""
_PATIENCE = 2.0
"""Seconds that a phase takes before it is shown."""


def phase(title: str, total: int, unit: str, items: Iterable[Any] | None = None) -> tqdm[Any]:
    """A bar of `items`, or to be updated by hand, that is shown on a terminal if it takes long."""
    return tqdm(items, title, total, unit=unit, unit_scale=unit == "B", delay=_PATIENCE, leave=False, disable=None)


def route_messages() -> None:
    """Write messages of this process above its bars; those of other packages to `LOG_FILE` instead, if it is set."""
    root, own = logging.getLogger(), logging.getLogger("verl_act")
    if any(isinstance(handler, _AboveBars) for handler in (*root.handlers, *own.handlers)):
        return
    logging.captureWarnings(True)
    file = os.environ.get(LOG_FILE)
    (own if file else root).addHandler(_AboveBars())
    if file:
        log = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace", delay=True)
        log.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        log.setLevel(logging.WARNING)
        root.addHandler(log)


class _AboveBars(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
