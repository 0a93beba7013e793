"""Reads that are asked for together are made together, and nobody gets what was read before they asked."""

import asyncio

import pytest

from steering.store.sql.vector_reads import BatchedReads


class Shelf:
    """Values that change; each read waits until it is let go, and is noted."""

    def __init__(self) -> None:
        self.value = 0
        self.reads: list[tuple[str, ...]] = []
        self.began = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, keys: tuple[str, ...]) -> dict[str, str]:
        """Each key with the value of the moment in which the read began."""
        self.reads.append(keys)
        self.began.set()
        found = {key: f"{key}{self.value}" for key in keys}
        await self.gate.wait()
        if "bad" in keys:
            raise ValueError("a read that fails")
        return found


async def test_a_burst_is_one_read_and_each_key_is_read_once() -> None:
    shelf = Shelf()
    reads = BatchedReads(shelf.read, 10)
    assert await asyncio.gather(*(reads.get(key) for key in "abab")) == ["a0", "b0", "a0", "b0"]
    assert shelf.reads == [("a", "b")]


async def test_a_burst_that_takes_some_turns_of_the_loop_to_come_is_one_read() -> None:
    shelf = Shelf()
    reads = BatchedReads(shelf.read, 10)

    async def late(turns: int, key: str) -> str:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await reads.get(key)

    await asyncio.gather(*(late(turns, key) for turns, key in ((0, "a"), (2, "b"), (5, "c"), (6, "a"))))
    assert shelf.reads == [("a", "b", "c")]


async def test_steady_traffic_keeps_nobody_waiting() -> None:
    shelf = Shelf()
    reads = BatchedReads(shelf.read, 10)
    first = asyncio.create_task(reads.get("a"))
    others = []
    for _ in range(1000):  # one more at every turn, far beyond the longest gathering
        others.append(asyncio.create_task(reads.get("b")))
        await asyncio.sleep(0)
        if first.done():
            break
    assert await first == "a0"
    assert len(others) < 1000
    assert set(await asyncio.gather(*others)) == {"b0"}


async def test_who_asks_while_a_read_runs_gets_the_next() -> None:
    shelf = Shelf()
    reads = BatchedReads(shelf.read, 10)
    shelf.gate.clear()
    early = asyncio.create_task(reads.get("a"))
    await shelf.began.wait()
    shelf.value = 1
    late = [asyncio.create_task(reads.get(key)) for key in ("a", "b")]
    await asyncio.sleep(0)
    shelf.gate.set()
    assert await early == "a0"
    assert [await one for one in late] == ["a1", "b1"]
    assert shelf.reads == [("a",), ("a", "b")]


async def test_a_long_burst_is_read_in_parts() -> None:
    shelf = Shelf()
    reads = BatchedReads(shelf.read, 2)
    assert await asyncio.gather(*(reads.get(key) for key in "abcac")) == ["a0", "b0", "c0", "a0", "c0"]
    assert shelf.reads == [("a", "b"), ("c",)]


async def test_a_failure_reaches_those_who_waited_for_it_and_nobody_after() -> None:
    reads = BatchedReads(Shelf().read, 10)
    results = await asyncio.gather(reads.get("bad"), reads.get("a"), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert await reads.get("a") == "a0"


async def test_who_leaves_takes_nothing_from_the_others() -> None:
    shelf = Shelf()
    reads = BatchedReads(shelf.read, 10)
    shelf.gate.clear()
    leaving, staying = asyncio.create_task(reads.get("a")), asyncio.create_task(reads.get("a"))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    shelf.gate.set()
    assert await staying == "a0"
