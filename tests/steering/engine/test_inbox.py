"""Inbox: what is handed over is taken once and in order, or given back when the engine ends."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from steering.engine.api import SamplingParams
from steering.engine.transformers.inbox import Inbox
from steering.engine.transformers.sequence import Sequence, Stream
from steering.errors import EngineDead, Overloaded
from steering.plan.types import UNSTEERED

NOBODY = asyncio.new_event_loop()
NOBODY.close()


def work(number: int, priority: int = 0) -> Sequence:
    """A request that asks for nothing in particular."""
    return Sequence(number, [0], 1, UNSTEERED, SamplingParams(), Stream(NOBODY), priority=priority)


def inbox(waiting: int = 0, most: int = 100) -> Inbox:
    """An inbox of an engine in which `waiting` requests wait."""
    return Inbox(lambda: waiting, most)


def test_a_busy_engine_takes_what_is_there_in_order() -> None:
    box, one, two = inbox(), work(1), work(2)
    assert box.collect(busy=True) == []
    box.put([one], bounded=True)
    box.put([two], bounded=True)
    assert len(box) == 2
    assert box.collect(busy=True) == [one, two]
    assert len(box) == 0


def test_work_wakes_a_resting_engine() -> None:
    box, one = inbox(), work(1)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(box.collect, busy=False)
        box.put([one], bounded=True)
        assert taken.result(30) == [one]


def test_what_becomes_ready_wakes_a_resting_engine_and_is_taken_once() -> None:
    box, called = inbox(), threading.Event()
    box.arrive(called.set)
    assert box.collect(busy=False) == []
    for take in box.arrivals():
        take()
    assert called.is_set()
    assert box.arrivals() == []


def test_the_bound_counts_live_requests_here_and_elsewhere() -> None:
    box = inbox(waiting=1, most=2)
    box.put([work(1), work(2, priority=1)], bounded=True)
    with pytest.raises(Overloaded, match="2 requests are waiting"):
        box.put([work(3)], bounded=True)
    box.put([work(4)], bounded=False)
    assert len(box) == 3


def test_closing_wakes_the_thread_and_takes_nothing_more() -> None:
    box = inbox()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(box.collect, busy=False)
        box.close()
        assert taken.result(30) is None
    with pytest.raises(EngineDead):
        box.put([work(2)], bounded=False)


def test_what_was_left_at_the_end_is_given_back() -> None:
    box, one = inbox(), work(1)
    box.put([one], bounded=True)
    box.close()
    assert box.collect(busy=True) is None  # closing, it takes none of it
    assert box.end() == [one]
    assert box.ended
    with pytest.raises(EngineDead):
        box.put([one], bounded=False)
