"""SharedReads: what is asked for while a read runs goes together into the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from itertools import islice
from typing import Generic, TypeVar

TURNS = 4
"""Of the event loop, about as many as a request takes from its socket to its read."""
MOST_ROUNDS = 32
"""Of so many turns, after which a read begins although requests keep coming."""
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedReads(Generic[K, V]):
    """One read at a time, for all who wait when it begins; of the same key once. Nobody gets what was read before they asked.

    Requests come in bursts and name the same few things, and a transaction costs more than a row.
    """

    def __init__(self, read: Callable[[tuple[K, ...]], Awaitable[Mapping[K, V]]], most: int) -> None:
        """read: a value for each of at most `most` keys; what it raises reaches everyone who waited for that read."""
        self._read, self._most = read, most
        self._waiting: dict[K, list[asyncio.Future[V]]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V:
        """The value of a key as it is now."""
        future: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._serve())
        return await future

    async def _gathered(self) -> None:
        """Returns when the event loop has turned a few times and nobody has come: the rest of a burst is not left behind
        for the price of a transaction, and who is alone waits for no clock. Steady traffic keeps nobody waiting."""
        seen = -1
        for _ in range(MOST_ROUNDS):
            if seen == (seen := sum(map(len, self._waiting.values()))):
                return
            for _ in range(TURNS):
                await asyncio.sleep(0)

    async def _serve(self) -> None:
        while self._waiting:
            await self._gathered()
            asked = {key: self._waiting.pop(key) for key in tuple(islice(self._waiting, self._most))}
            everyone = [future for futures in asked.values() for future in futures]
            try:
                found = await self._read(tuple(asked))
            except Exception as error:
                for future in everyone:
                    if not future.done():
                        future.set_exception(error)
                continue
            except BaseException:
                for future in everyone:
                    future.cancel()
                raise
            for key, futures in asked.items():
                for future in futures:
                    if not future.done():  # its caller may have left
                        future.set_result(found[key])
