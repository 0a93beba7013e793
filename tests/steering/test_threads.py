"""Work beside the engine runs in threads that end."""

import asyncio
import threading

import pytest

from steering.threads import PassingThreads, in_passing_thread


def test_a_result_and_a_failure_come_back() -> None:
    assert in_passing_thread(lambda: 41 + 1) == 42
    with pytest.raises(ValueError, match="no"):
        in_passing_thread(lambda: int("no"))


async def test_every_task_has_a_thread_that_ends() -> None:
    asyncio.get_running_loop().set_default_executor(PassingThreads())
    before = threading.active_count()
    threads = await asyncio.gather(*(asyncio.to_thread(threading.current_thread) for _ in range(20)))
    assert len({id(thread) for thread in threads}) == 20
    for thread in threads:
        thread.join(5)
    assert threading.active_count() == before
