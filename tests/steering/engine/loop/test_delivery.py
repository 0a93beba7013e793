"""Delivery: when tokens are sent. Nothing is lost, nothing changes places, and nothing waits for more than one pass."""

import asyncio
from typing import Any

import pytest

from steering.engine.api import SamplingParams, TokenEvent
from steering.engine.transformers.delivery import MANY, SHORT_SECONDS, Delivery
from steering.engine.transformers.sequence import Sequence, Stream
from steering.plan.types import UNSTEERED

SHORT, LONG = SHORT_SECONDS / 2, SHORT_SECONDS * 2


class WithoutMemory:
    """Stands for an event loop that cannot be called, because there is no memory."""

    def call_soon_threadsafe(self, *_: object) -> None:
        """Fails."""
        raise MemoryError


class Rows:
    """Rows that run, and what their readers have received so far."""

    def __init__(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self.delivery = Delivery()
        self.sequences = [
            Sequence(i, [0], 1, UNSTEERED, SamplingParams(), Stream(loop), running=True, computed=1)
            for i in range(count)
        ]
        self.received: list[list[object]] = [[] for _ in range(count)]

    def write(self, *rows: int) -> list[Sequence]:
        """A token for each of these rows, for all when none is named."""
        chosen = [self.sequences[row] for row in rows] or self.sequences
        for one in chosen:
            one.outbox.append(TokenEvent(one.generated, 7, "x"))
            one.ids.append(7)
        return chosen

    async def counts(self) -> list[int]:
        """How many items each reader has got."""
        for _ in range(3):
            await asyncio.sleep(0)
        for one, received in zip(self.sequences, self.received, strict=True):
            while one.stream._items:
                received.append(await one.stream.get())
        return [len(received) for received in self.received]


async def test_few_rows_receive_every_token_at_once() -> None:
    rows = Rows(MANY - 1)
    for passes in range(1, 5):
        rows.delivery.after(rows.write(), SHORT)
        assert await rows.counts() == [passes] * (MANY - 1)


async def test_many_rows_receive_two_tokens_at_a_time_after_the_first() -> None:
    rows = Rows(MANY)
    counts = []
    for _ in range(6):
        rows.delivery.after(rows.write(), SHORT)
        counts.append(set(await rows.counts()))
    assert counts == [{1}, {1}, {3}, {3}, {5}, {5}]
    assert [event.index for event in rows.received[3] if isinstance(event, TokenEvent)] == [0, 1, 2, 3, 4]


async def test_after_a_long_pass_everyone_receives_at_once() -> None:
    rows = Rows(MANY)
    for passes in range(1, 5):
        rows.delivery.after(rows.write(), LONG)
        assert await rows.counts() == [passes] * MANY


async def test_the_end_of_an_answer_is_sent_at_once_with_all_before_it() -> None:
    rows = Rows(MANY)
    for _ in range(2):
        rows.delivery.after(rows.write(), SHORT)
    rows.sequences[0].running = False
    assert (await rows.counts())[0] == 1
    rows.delivery.after(rows.write(), SHORT)  # both are sent
    rows.write()
    rows.sequences[1].running = False
    rows.delivery.after(rows.sequences, SHORT)
    assert await rows.counts() == [4, 4] + [3] * (MANY - 2)


async def test_what_was_held_is_sent_before_something_longer_and_when_a_row_stays_out() -> None:
    rows = Rows(MANY)
    for _ in range(2):
        rows.delivery.after(rows.write(), SHORT)
    rows.delivery.flush()
    assert set(await rows.counts()) == {2}
    rows.delivery.after(rows.write(), SHORT)
    assert set(await rows.counts()) == {2}
    rows.delivery.after(rows.write(0, 1), SHORT)  # the others are in no pass, and receive what was held
    assert await rows.counts() == [4, 4] + [3] * (MANY - 2)


async def test_what_could_not_be_sent_is_sent_once_with_the_next() -> None:
    rows = Rows(2)
    full: Any = WithoutMemory()
    here, rows.sequences[1].stream.loop = rows.sequences[1].stream.loop, full
    with pytest.raises(MemoryError):
        rows.delivery.now(rows.write())
    rows.sequences[1].stream.loop = here
    rows.delivery.now([*rows.sequences, *rows.sequences])
    assert await rows.counts() == [1, 1]


async def test_a_loop_that_is_gone_closes_its_streams() -> None:
    rows = Rows(1)
    gone = asyncio.new_event_loop()
    gone.close()
    rows.sequences[0].stream.loop = gone
    rows.delivery.now(rows.write())
    assert rows.sequences[0].stream.closed
