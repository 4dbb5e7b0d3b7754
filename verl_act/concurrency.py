"""Many coroutines at once, as many as an engine can use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


async def gather(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results in order, like `asyncio.gather`; but if one fails, the others are cancelled, and have ended."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def for_each(function: Callable[[Item], Awaitable[None]], items: Sequence[Item], window: int) -> None:
    """Call `function` with each item, in order of start; as one call ends the next starts, at most `window` at once."""
    remaining = iter(items)

    async def work() -> None:
        for item in remaining:
            await function(item)

    await gather(work() for _ in range(min(window, len(items))))
