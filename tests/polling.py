"""Waiting for something to come true."""

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Returns once a condition holds; fails when it does not within a generous time."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for lives in other tasks and threads and sets no event
            await asyncio.sleep(0.005)
