"""Changes: the order between what this server writes of a topic and what it reads of it again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class Changes:
    """Changes come into force here in the order in which they were stored, and what was read before one never replaces it.

    A write that waits for the database holds up the writes behind it and no read. A read that ends while a write is under way may
    know a later change of another server than that write; then the next read, at most REFRESH_SECONDS later, brings it.
    """

    def __init__(self) -> None:
        self._writing = asyncio.Lock()
        self._made = 0

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Surrounds a write to the store and, with nothing awaited after it, the same change in memory."""
        async with self._writing:
            yield
            self._made += 1

    async def read(self, read: Callable[[], Awaitable[T]]) -> T:
        """Returns what `read` returns; calls it again where a change was made meanwhile. To be used before anything is awaited."""
        while True:
            made, found = self._made, await read()
            if made == self._made:
                return found
