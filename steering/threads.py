"""Threads that end: for work beside the engine, whose own thread must stay the only one that keeps helpers of its own.

OpenMP (libgomp, inside torch) keeps a pool of helper threads for every thread that ever ran a parallel operation. As soon
as all pools together have more threads than there are processors, every pool sleeps at each barrier instead of spinning:
a decode step of many small operations then takes four times as long (measured on two cores: 88 ms against 21). A thread
that ends takes its pool with it; one that lives on, as an event loop's does, can forgo a pool.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import torch

T = TypeVar("T")
P = ParamSpec("P")


class ThreadPerTaskExecutor(ThreadPoolExecutor):
    """An executor whose every task has a thread of its own, which ends with it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Starts at once."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name="passing", daemon=True).start()
        return future


def call_in_thread(work: Callable[[], T]) -> T:
    """The result of work that ran in a thread of its own; the caller waits."""
    executor: Any = ThreadPerTaskExecutor(max_workers=1)
    result: T = executor.submit(work).result()
    return result


async def run_in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, in a thread that ends: those of an event loop's own executor live on and keep their helpers."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(
        ThreadPerTaskExecutor(max_workers=1), lambda: context.run(work, *args, **kwargs)
    )


def disable_intra_op_threads() -> None:
    """From here on the calling thread runs parallel operations alone. Other threads keep as many helpers as they had.

    The number of threads is a thread's own in OpenMP; torch hands the number that was set last to threads that begin.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    call_in_thread(lambda: torch.set_num_threads(count))
