"""The servers that processes of a test have open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

Server = tuple[str, str, int]
"""Name of the process, address, port."""


def listening() -> set[Server]:
    """The servers of this process and of all that it has started, at this moment."""
    found = set()
    this = psutil.Process()
    for one in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            servers = [at for at in one.net_connections("tcp") if at.status == psutil.CONN_LISTEN]
            found |= {(one.name(), at.laddr.ip.removeprefix("::ffff:"), at.laddr.port) for at in servers}
    return found


@contextmanager
def new_servers() -> Iterator[set[Server]]:
    """The servers that are open at any time within the block and were not before; complete at its end."""
    before, found, over = listening(), set[Server](), threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            found.update(listening() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
