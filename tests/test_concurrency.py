"""Calls side by side: how many at once, in which order, and what is left of them when one fails."""

from __future__ import annotations

import asyncio

import pytest

from verl_act.concurrency import for_each, gather


def test_calls_fill_the_window_and_start_in_order() -> None:
    started: list[int] = []
    running, most = set[int](), 0

    async def call(item: int) -> None:
        nonlocal most
        started.append(item)
        running.add(item)
        most = max(most, len(running))
        for _ in range(1 if item else 50):  # the first call outlasts many others
            await asyncio.sleep(0)
        assert item or len(started) > 20, "the others did not wait for it"
        running.remove(item)

    asyncio.run(for_each(call, range(40), 4))
    assert started == list(range(40)) and most == 4 and not running


def test_no_item_and_a_wide_window() -> None:
    calls: list[int] = []

    async def call(item: int) -> None:
        calls.append(item)
        tasks.append(len(asyncio.all_tasks()))

    tasks: list[int] = []
    asyncio.run(for_each(call, [], 4))
    asyncio.run(for_each(call, [1, 2], 100))
    assert calls == [1, 2] and max(tasks) <= 3


def test_a_failure_ends_the_other_calls() -> None:
    ended: list[int] = []

    async def call(item: int) -> None:
        try:
            await asyncio.sleep(0 if item == 1 else 60)
            raise ValueError("broken")
        finally:
            await asyncio.sleep(0)
            ended.append(item)

    async def run() -> int:
        with pytest.raises(ValueError, match="broken"):
            await for_each(call, range(100), 3)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
    assert sorted(ended) == [0, 1, 2]


def test_results_keep_their_order() -> None:
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(gather(map(after, [3, 0, 2]))) == [3, 0, 2]
