"""Turns: texts that are read wait for a place in turns between clients, those of one client in turns between its calls."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import TypeAlias

Queue: TypeAlias = "deque[asyncio.Future[None]]"


class Turns:
    """Places in vLLM's queue, for which texts wait in first-in, first-out order within a call. Used on one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places  # while one is free, nobody waits
        self._waiting: OrderedDict[Hashable, OrderedDict[Hashable, Queue]] = OrderedDict()
        """Client -> its calls -> their texts, each in the order of their turns; none is empty."""

    @asynccontextmanager
    async def place(self, client: str, call: Hashable) -> AsyncIterator[None]:
        """Waits for a place, and gives it back at the end. client: empty where the call is a client of its own."""
        await self._take(client or call, call)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, client: Hashable, call: Hashable) -> None:
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, OrderedDict()).setdefault(call, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it had been given to this text already
                self._give_back()
            raise

    def _give_back(self) -> None:
        """Gives a place to the text whose turn it is. The next turn of its client, and of its call, comes after those of the others."""
        while self._waiting:
            client, calls = self._waiting.popitem(last=False)
            call, texts = calls.popitem(last=False)
            place = texts.popleft()
            if texts:
                calls[call] = texts
            if calls:
                self._waiting[client] = calls
            if not place.cancelled():  # else its reader has left
                place.set_result(None)
                return
        self._free += 1
