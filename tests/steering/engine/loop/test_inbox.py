"""Inbox: what is handed over is taken once and in order, or given back when the engine ends."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest

from steering.engine.answers import Stream
from steering.engine.api import SamplingParams
from steering.engine.options import EngineLimits
from steering.engine.transformers.loop import Inbox
from steering.engine.transformers.request import Request
from steering.errors import EngineDead, Overloaded
from steering.plan.types import UNSTEERED

NOBODY = asyncio.new_event_loop()
NOBODY.close()
LIMITS = EngineLimits(max_waiting=2, max_background_waiting=3)


def work(number: int, priority: int = 0, client: str = "") -> Request:
    """A request that asks for nothing in particular."""
    return Request(
        id=number,
        ids=[0],
        prompt_length=1,
        plan=UNSTEERED,
        sampling=SamplingParams(),
        stream=Stream(NOBODY),
        priority=priority,
        client=client,
    )


def inbox(live: int = 0, background: int = 0) -> Inbox:
    """An inbox of an engine in whose scheduler so many requests wait."""
    return Inbox(LIMITS, lambda one: background if one.background else live)


def test_a_busy_engine_takes_what_is_there_in_order() -> None:
    box, one, two = inbox(), work(1), work(2)
    assert box.collect(busy=True) == []
    box.put([one])
    box.put([two])
    assert box.count(background=False) == 2
    assert box.collect(busy=True) == [one, two]
    assert box.count(background=False) == 0


def test_work_wakes_an_idle_engine() -> None:
    box, one = inbox(), work(1)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(box.collect, busy=False)
        box.put([one])
        assert taken.result(30) == [one]


def test_an_idle_engine_has_small_things_to_do_until_there_is_work() -> None:
    done, one = list[int](), work(1)

    def idle() -> bool:
        done.append(1)
        if len(done) == 3:
            box.put([one])
        return True

    box = Inbox(LIMITS, lambda _: 0, idle=idle)
    assert box.collect(busy=False) == [one]
    assert len(done) == 3
    assert box.collect(busy=True) == []
    assert len(done) == 3


def test_closing_ends_an_idle_engine_that_has_things_to_do() -> None:
    def idle() -> bool:
        box.close()
        return True

    box = Inbox(LIMITS, lambda _: 0, idle=idle)
    assert box.collect(busy=False) is None


def test_what_an_idle_engine_does_ends() -> None:
    done: list[int] = []

    def idle() -> bool:
        done.append(1)
        return False

    box, one = Inbox(LIMITS, lambda _: 0, idle=idle), work(1)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(box.collect, busy=False)
        while not done:
            sleep(0.01)
        box.put([one])
        assert taken.result(30) == [one]
    assert done == [1]


def test_a_call_wakes_an_idle_engine_and_is_made_once() -> None:
    box, called = inbox(), threading.Event()
    box.call(called.set)
    assert box.collect(busy=False) == []
    for function in box.calls():
        function()
    assert called.is_set()
    assert box.calls() == []


def test_the_bound_counts_live_requests_here_and_in_the_scheduler() -> None:
    box = inbox(live=1)
    box.put([work(1)])
    with pytest.raises(Overloaded, match="2 requests are waiting"):
        box.put([work(3)])
    assert box.count(background=False) == 1


def test_background_work_has_a_bound_of_its_own() -> None:
    box = inbox()
    box.put([work(number, priority=1) for number in range(1500)])
    box.put([work(2000)])
    with pytest.raises(Overloaded, match="1500 texts or background requests of this caller are waiting, and at most 3"):
        box.put([work(3000, priority=1)])
    assert (box.count(background=False), box.count(background=True)) == (1, 1500)


def test_texts_of_one_client_refuse_none_of_another_and_none_of_a_call_that_has_begun() -> None:
    box = inbox()
    box.put([work(number, priority=1, client="many") for number in range(5)])
    box.put([work(5, priority=1, client="few")])
    with pytest.raises(Overloaded, match="5 texts"):
        box.put([work(6, priority=1, client="many")])
    box.put([work(7, priority=1, client="many")], begun=True)
    assert [box.count(background=True, client=client) for client in ("many", "few")] == [6, 1]


def test_closing_wakes_the_thread_and_takes_nothing_more() -> None:
    box = inbox()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(box.collect, busy=False)
        box.close()
        assert taken.result(30) is None
    with pytest.raises(EngineDead):
        box.put([work(2)])


def test_what_was_left_at_the_end_is_given_back() -> None:
    box, one = inbox(), work(1)
    box.put([one])
    box.close()
    assert box.collect(busy=True) is None  # closing, it takes none of it
    assert box.end() == [one]
    assert box.ended
    with pytest.raises(EngineDead):
        box.put([one])
