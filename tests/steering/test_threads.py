"""Blocking work runs in threads that end with it, a bounded number at a time."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steering.threads import ThreadPerTaskExecutor, call_in_thread, run_in_thread


def assert_ended(threads: Iterable[threading.Thread]) -> None:
    """They end by themselves; a slow machine is given time."""
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), thread.name


def test_a_result_and_a_failure_come_back() -> None:
    assert call_in_thread(lambda: 41 + 1) == 42
    with pytest.raises(ValueError, match="no"):
        call_in_thread(lambda: int("no"))


async def test_every_task_has_a_thread_that_ends() -> None:
    before = set(threading.enumerate())
    threads = await asyncio.gather(*(run_in_thread(threading.current_thread) for _ in range(20)))
    assert len({id(thread) for thread in threads}) == 20
    assert_ended({*threads, *(set(threading.enumerate()) - before)})


async def test_no_more_threads_run_than_may_and_waiting_work_follows() -> None:
    executor, lock, counts = ThreadPerTaskExecutor(max_threads=3), threading.Lock(), [0, 0]
    release = threading.Event()

    def work(number: int) -> int:
        with lock:
            counts[0] += 1
            counts[1] = max(counts)
        release.wait(60)
        with lock:
            counts[0] -= 1
        return number

    futures = [executor.submit(work, number) for number in range(10)]
    assert futures[9].cancel()
    release.set()
    assert [future.result(60) for future in futures[:9]] == list(range(9))
    assert 1 <= counts[1] <= 3


@contextmanager
def no_thread_can_start() -> Iterator[None]:
    """A new thread asks for a larger stack than there are addresses, so that the system refuses it."""
    before = threading.stack_size(1 << 48)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_threads_that_could_not_start_take_no_place() -> None:
    executor = ThreadPerTaskExecutor(max_threads=2)
    with no_thread_can_start():
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.submit(int)
    assert executor.submit(lambda: 41 + 1).result(60) == 42


def test_work_that_waits_is_done_where_no_further_thread_can_start() -> None:
    executor, release, began = ThreadPerTaskExecutor(max_threads=1), threading.Event(), threading.Event()

    def work() -> bool:
        began.set()
        return release.wait(60)

    first = executor.submit(work)
    assert began.wait(60)
    waiting = [executor.submit(int, number) for number in range(3)]
    with no_thread_can_start():
        release.set()
        assert first.result(60)
        assert [one.result(60) for one in waiting] == [0, 1, 2]
    assert executor.submit(lambda: 41 + 1).result(60) == 42


async def test_with_an_event_loop_work_keeps_its_context_and_leaves_no_thread() -> None:
    """Whatever executor the loop has: nothing was set here."""
    named = contextvars.ContextVar("named", default="nobody")
    named.set("somebody")
    before = set(threading.enumerate())
    thread, name = await run_in_thread(lambda: (threading.current_thread(), named.get()))
    assert name == "somebody"
    assert thread is not threading.current_thread()
    assert_ended({thread, *(set(threading.enumerate()) - before)})
    with pytest.raises(ValueError, match="no"):
        await run_in_thread(int, "no")


PARALLEL = """
import os, sys, time, torch
from steering.threads import disable_intra_op_threads, call_in_thread, release_thread_pool
torch.set_num_threads(2)
if sys.argv[1] == "disabled":
    disable_intra_op_threads()
def native():
    looks = []
    while len(looks) < 5 or len(set(looks[-5:])) > 1:  # what was started while importing may still be ending
        time.sleep(0.1)
        looks.append(len(os.listdir("/proc/self/task")))
    return looks[-1]
torch.ones(8)
before = native()
torch.rand(2_000_000).exp().sum()
if sys.argv[1] == "released":
    release_thread_pool()
if sys.argv[1] == "released, used again":
    release_thread_pool()
    assert torch.ones(2_000_000).exp().sum() > 5_000_000
print(native() - before, call_in_thread(torch.get_num_threads))
"""


PARALLEL_CASES = [("plain", "1 2"), ("disabled", "0 2"), ("released", "0 2"), ("released, used again", "1 2")]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize(("mode", "expected"), PARALLEL_CASES)
def test_intra_op_threads_are_not_started_or_freed_and_other_threads_keep_theirs(mode: str, expected: str) -> None:
    """In a process of its own, since intra-op threads stay. The case "plain" shows that the count is measured: one such thread starts."""
    command = [sys.executable, "-c", PARALLEL, mode]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    assert found.stdout.strip() == expected


OPENED = """
import os, sys, time, torch
from pathlib import Path
from steering.engine import open_engine
from steering.engine.options import EngineLimits, EngineOptions
from steering.threads import call_in_thread
torch.set_num_threads(2)
def native():
    looks = []
    while len(looks) < 5 or len(set(looks[-5:])) > 1:  # what was started while loading may still be ending
        time.sleep(0.1)
        looks.append(len(os.listdir("/proc/self/task")))
    return looks[-1]
options = EngineOptions(sys.argv[1], Path(sys.argv[1]), device="cpu", compiled=False, limits=EngineLimits(cache_bytes=1 << 24))
engine = open_engine("transformers", options)
before = native()
torch.rand(2_000_000).exp().sum()  # starts the pool of this thread if it has none
print(native() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_opening_an_engine_leaves_no_intra_op_threads_to_the_caller(tiny_folder: Path) -> None:
    """The pool of the opening thread starts with the caller's own first parallel operation, and not while the engine is opened."""
    command = [sys.executable, "-c", OPENED, str(tiny_folder)]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    assert found.stdout.strip().splitlines()[-1] == "1"


IDLE = """
import os, sys, threading, time, torch
from steering.engine.options import EngineLimits
from steering.engine.transformers.loop import Inbox
torch.set_num_threads(2)
inbox = Inbox(EngineLimits(), lambda background: 0)
rounds, results = threading.Semaphore(0), []
def serve():
    busy = sys.argv[1] == "busy"
    while inbox.collect(busy=busy) is not None:
        for function in inbox.calls():
            function()
            rounds.release()
        while busy and not inbox._calls and not inbox._closing:
            time.sleep(0.01)
def native():
    looks = []
    while len(looks) < 5 or len(set(looks[-5:])) > 1:
        time.sleep(0.1)
        looks.append(len(os.listdir("/proc/self/task")))
    return looks[-1]
thread = threading.Thread(target=serve)
thread.start()
before = native()
found = []
for _ in range(2):
    inbox.call(lambda: results.append(torch.ones(2_000_000).exp().sum() > 5_000_000))
    rounds.acquire()
    found.append(native() - before)
inbox.close()
thread.join()
print(*found, *map(bool, results))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize(("mode", "expected"), [("busy", "1 1 True True"), ("idle", "0 0 True True")])
def test_an_engine_s_thread_that_waits_for_work_keeps_no_intra_op_threads(mode: str, expected: str) -> None:
    """They would slow down another engine of the process. The case "busy" shows that the count is measured."""
    command = [sys.executable, "-c", IDLE, mode]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    assert found.stdout.strip() == expected
