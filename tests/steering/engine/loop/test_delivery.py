"""Delivery: when tokens are sent. Nothing is lost, nothing changes places, and nothing waits for longer than the interval."""

import asyncio
from typing import Any

import pytest

from steering.engine.answers import Stream
from steering.engine.api import SamplingParams, TokenEvent
from steering.engine.transformers.loop import INTERVAL_SECONDS, MANY, Delivery
from steering.engine.transformers.request import Request
from steering.plan.types import UNSTEERED

HALF = 0.51 * INTERVAL_SECONDS


class WithoutMemory:
    """Stands for an event loop that cannot be called, because there is no memory."""

    def call_soon_threadsafe(self, *_: object) -> None:
        """Fails."""
        raise MemoryError


class Rows:
    """Rows that run, and what their readers have received so far."""

    def __init__(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self.now = 0.0
        self.delivery = Delivery(lambda: self.now)
        self.sequences = [
            Request(
                id=i,
                ids=[0],
                prompt_length=1,
                plan=UNSTEERED,
                sampling=SamplingParams(),
                stream=Stream(loop),
                running=True,
                computed=1,
            )
            for i in range(count)
        ]
        self.received: list[list[object]] = [[] for _ in range(count)]

    def write(self, *rows: int) -> list[Request]:
        """A token for each of these rows, for all when none is named."""
        chosen = [self.sequences[row] for row in rows] or self.sequences
        for one in chosen:
            one.outbox.append(TokenEvent(one.generated, 7, "x"))
            one.ids.append(7)
        return chosen

    def after(self, seconds: float, *rows: int) -> None:
        """A pass that ends so many seconds after the last, with a token for these rows, or for all."""
        self.now += seconds
        self.delivery.after(self.write(*rows))

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
        rows.after(HALF)
        assert await rows.counts() == [passes] * (MANY - 1)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(HALF, [1, 1, 3, 3, 5, 5]), (0.4 * INTERVAL_SECONDS, [1, 1, 1, 4, 4, 4, 7])]
)
async def test_many_rows_receive_their_tokens_at_intervals_after_the_first(seconds: float, expected: list[int]) -> None:
    rows = Rows(MANY)
    counts = []
    for _ in expected:
        rows.after(seconds)
        counts.append(set(await rows.counts()))
    assert counts == [{count} for count in expected]
    assert [event.index for event in rows.received[3] if isinstance(event, TokenEvent)] == list(range(expected[-1]))


async def test_after_a_long_pass_everyone_receives_at_once() -> None:
    rows = Rows(MANY)
    for passes in range(1, 5):
        rows.after(1.01 * INTERVAL_SECONDS)
        assert await rows.counts() == [passes] * MANY


async def test_the_first_token_of_a_row_is_sent_at_once() -> None:
    rows = Rows(MANY + 1)
    rows.after(0, *range(MANY))
    rows.after(HALF / 2)
    assert await rows.counts() == [1] * (MANY + 1)


async def test_the_end_of_an_answer_is_sent_at_once_with_all_before_it() -> None:
    rows = Rows(MANY)
    for _ in range(2):
        rows.after(HALF)
    rows.sequences[0].running = False
    assert (await rows.counts())[0] == 1
    rows.after(HALF)  # both are sent
    rows.write()
    rows.sequences[1].running = False
    rows.delivery.after(rows.sequences)
    assert await rows.counts() == [4, 4] + [3] * (MANY - 2)


async def test_what_was_held_is_sent_before_something_longer_and_when_a_row_stays_out() -> None:
    rows = Rows(MANY)
    for _ in range(2):
        rows.after(HALF / 2)
    assert set(await rows.counts()) == {1}
    rows.delivery.flush()
    assert set(await rows.counts()) == {2}
    rows.after(HALF / 2)
    assert set(await rows.counts()) == {2}
    rows.after(HALF / 2, 0, 1)  # the others are in no pass, and receive what was held
    assert await rows.counts() == [4, 4] + [3] * (MANY - 2)


async def test_a_row_that_was_preempted_receives_what_was_held() -> None:
    rows = Rows(MANY + 1)
    for _ in range(2):
        rows.after(HALF / 2)
    rows.sequences[0].running = False
    rows.after(HALF / 2, *range(1, MANY + 1))
    assert await rows.counts() == [2] + [1] * MANY


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
