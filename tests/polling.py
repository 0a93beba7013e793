"""Waits for conditions."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Returns when a condition holds. Fails after a generous timeout."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - the condition depends on other tasks and threads without an event
            await asyncio.sleep(0.005)


async def holds(check: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Returns when a condition holds that takes a request to find out."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
