"""Stream: carries the items of one piece of work from an engine's thread to the coroutine that waits for them."""

import asyncio
from collections import deque
from collections.abc import Iterable


class Stream:
    """Carries what work yields to one waiting coroutine. Closing it is the cancel."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = False
        self._items: deque[object] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Has the engine drop the work that the stream belongs to."""
        self.closed = True

    def receive(self, items: Iterable[object]) -> None:
        """On the event loop: hand over items and wake the reader."""
        self._items.extend(items)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> object:
        """The next item; an exception that was sent is raised."""
        while not self._items:
            self._waiter = self.loop.create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item
