"""Texts get the places of the engine vllm in turns between clients and their calls, and no place is lost when a reader leaves."""

import asyncio

import pytest

from steering.engine.vllm.turns import Turns


class Readers:
    """Texts that each hold a place until `next_one` ends them. order: the names in the order in which they got one."""

    def __init__(self, places: int = 1) -> None:
        self.turns, self.order = Turns(places), list[str]()
        self._ends = dict[str, asyncio.Event]()
        self.tasks = dict[str, asyncio.Task[None]]()

    async def _read(self, name: str) -> None:
        """name: client, call and number of the text."""
        async with self.turns.place(name[0].replace("-", ""), name[:2]):
            self.order.append(name)
            await self._ends[name].wait()

    async def come(self, *names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._read(name))
        await settled()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settled()

    async def leave(self, name: str) -> None:
        self.tasks[name].cancel()
        await settled()

    async def all(self) -> list[str]:
        """Ends all in the order in which they get places."""
        ended = 0
        while ended < len(self.order):
            await self.end(self.order[ended])
            ended += 1
        return self.order


async def settled() -> None:
    for _ in range(9):
        await asyncio.sleep(0)


async def test_clients_take_turns_and_the_calls_of_one_client_too() -> None:
    readers = Readers()
    await readers.come("ax1", "ax2", "ax3", "ax4", "ay1", "bx1", "bx2")
    assert await readers.all() == ["ax1", "ax2", "bx1", "ay1", "bx2", "ax3", "ax4"]


async def test_a_call_without_a_client_is_a_client_of_its_own() -> None:
    readers = Readers()
    await readers.come("-x1", "-x2", "-x3", "-y1", "-y2")
    assert await readers.all() == ["-x1", "-x2", "-y1", "-x3", "-y2"]


async def test_as_many_read_as_there_are_places() -> None:
    readers = Readers(places=3)
    await readers.come(*(f"ax{number}" for number in range(9)))
    assert len(readers.order) == 3
    await readers.end("ax1")
    assert len(readers.order) == 4
    assert len(await readers.all()) == 9


@pytest.mark.parametrize("leaving", ["ax1", "ax2"])
async def test_a_reader_that_leaves_keeps_no_place(leaving: str) -> None:
    """The first reads, the second waits."""
    readers = Readers()
    await readers.come("ax1", "ax2", "ax3")
    await readers.leave(leaving)
    assert await readers.all() == [name for name in ("ax1", "ax2", "ax3") if name != leaving or name == "ax1"]
    await readers.come("bx1")
    assert readers.order[-1] == "bx1"


async def test_a_reader_that_leaves_as_it_gets_its_place_gives_it_on() -> None:
    readers = Readers()
    await readers.come("ax1", "ax2", "ax3")
    readers._ends["ax1"].set()
    await asyncio.sleep(0)  # the first has ended, and the second has its place but has not noticed
    await readers.leave("ax2")
    assert await readers.all() == ["ax1", "ax3"]
    await readers.come("bx1")
    assert readers.order[-1] == "bx1"
