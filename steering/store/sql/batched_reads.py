"""BatchedReads: combines concurrent reads of single keys into one query."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from itertools import islice
from typing import Generic, TypeVar

LOOP_CYCLES = 4
"""Cycles of the event loop from the arrival of a request to its read."""
MAX_ROUNDS = 32
"""Rounds of LOOP_CYCLES after which a read begins although further keys keep arriving."""
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BatchedReads(Generic[K, V]):
    """Runs one read at a time for all keys waiting when it begins. No caller gets a value read before it asked.

    Requests arrive in bursts and name the same few vectors, and a transaction costs more than a row.
    """

    def __init__(self, read: Callable[[tuple[K, ...]], Awaitable[Mapping[K, V]]], max_keys: int) -> None:
        """read: a value for each of at most `max_keys` keys; its exception is raised in every caller of that read."""
        self._read, self._max_keys = read, max_keys
        self._waiting: dict[K, list[asyncio.Future[V]]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V:
        """Returns the current value of a key."""
        future: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._serve())
        return await future

    async def _wait_for_burst(self) -> None:
        """Returns when no key arrived for LOOP_CYCLES: a burst shares one transaction, and a single reader is not delayed."""
        seen = -1
        for _ in range(MAX_ROUNDS):
            if seen == (seen := sum(map(len, self._waiting.values()))):
                return
            for _ in range(LOOP_CYCLES):
                await asyncio.sleep(0)

    async def _serve(self) -> None:
        while self._waiting:
            await self._wait_for_burst()
            batch = {key: self._waiting.pop(key) for key in tuple(islice(self._waiting, self._max_keys))}
            waiting = [future for futures in batch.values() for future in futures]
            try:
                found = await self._read(tuple(batch))
            except Exception as error:
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            except BaseException:
                for future in waiting:
                    future.cancel()
                raise
            for key, futures in batch.items():
                for future in futures:
                    if not future.done():  # its caller may have left
                        future.set_result(found[key])
