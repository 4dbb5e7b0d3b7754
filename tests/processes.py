"""Processes that tests start: their environment, which of them there are, and the servers that they have open."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from verl_act.upstream_gaps.cpu import torch_is_cpu_build

Server = tuple[str, str, int]
"""Name of the process, address, port."""


ON_CPU = {} if torch_is_cpu_build() else {"VERL_PLATFORM": "cpu"}


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what our plugin, or a user, has set in it; verl then runs on the CPU."""
    ours = ("VERL_", "VLLM_", "ALFWORLD_")  # alfworld sets one in a process that imports it
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, **ON_CPU, **changes}


def started_processes(word: str, by: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes below this one, or below `by`, that have the word in their command."""
    matching = []
    for process in (by or psutil.Process()).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # over by now, or waits to be collected
            if word in " ".join(process.cmdline()):
                matching.append(process)
    return matching


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
        while not over.wait(1):  # each look takes a part of a core; servers last as long as their run
            found.update(listening() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def check_loopback(servers: set[Server]) -> None:
    """Of a run of verl: Ray's, verl's and vLLM's servers; the trainer's process group is torch's (docs/gaps.md)."""
    names = {name for name, *_ in servers}
    assert {"gcs_server", "raylet"} <= names and any("vllm" in name.lower() for name in names), names
    exposed = {name for name, address, _ in servers if address not in ("127.0.0.1", "::1")}
    assert {name.split(".")[0] for name in exposed} <= {"ray::WorkerDict"}, servers
