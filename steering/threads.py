"""Runs blocking work in threads that end with it, so that only the engine's thread keeps an OpenMP pool.
OpenMP (libgomp, inside torch) keeps a pool of worker threads for every thread that ever ran a parallel operation. As soon
as all pools together have more threads than there are processors, every pool sleeps at each barrier, and decode steps take
a multiple of their time. A thread that ends frees its pool; the event loop does without one, an idle engine frees its own."""

import asyncio
import contextvars
import ctypes
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

OPENMP_FILES = ("libgomp*.so*", "libomp*", "libiomp*")
"""Of GNU, LLVM and Intel."""
OMP_PAUSE_SOFT = 1
"""A value of `omp_pause_resource_t` in OpenMP 5."""
T = TypeVar("T")
P = ParamSpec("P")
MAX_THREADS = 16
"""Threads of `run_in_thread` at a time; more would only compete for the processors. Further work waits for a thread."""


class ThreadPerTaskExecutor(Executor):
    """Runs each task in a new thread, at most `max_threads` at a time.
    A place belongs to a thread that has started, so none is lost where the system starts no more threads (`pids.max` of a
    container): `submit` raises then, and the threads that run do the work that waits."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._running = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Starts a thread for the task, or queues it while all are in use. Raises RuntimeError where none can be started."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if self._running >= self._max_threads:
                self._waiting.append(run)
            else:
                self._start(run)
                self._running += 1
        return future

    def _start(self, run: Callable[[], None]) -> None:
        threading.Thread(target=self._work, args=(run,), name="task", daemon=True).start()

    def _work(self, run: Callable[[], None]) -> None:
        """Runs a task, and passes its place to the one that waits longest; runs that too if no thread can be started."""
        while True:
            run()
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                run = self._waiting.popleft()
            with suppress(RuntimeError, MemoryError):
                self._start(run)
                return


_executor = ThreadPerTaskExecutor()


def call_in_thread(work: Callable[[], T]) -> T:
    """Runs work in a new thread and waits for its result."""
    return ThreadPerTaskExecutor().submit(work).result()


async def run_in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs blocking work in a new thread and awaits its result, as `asyncio.to_thread` does in a thread that stays.
    The thread does not keep the process alive. Cancelling the caller does not stop work that has begun."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_executor, lambda: context.run(work, *args, **kwargs))


def disable_intra_op_threads() -> None:
    """Makes the calling thread run parallel operations by itself; other threads keep their number of OpenMP threads.
    OpenMP has a number for each thread; torch passes the number set last to threads that start later."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    call_in_thread(lambda: torch.set_num_threads(count))


def release_thread_pool() -> None:
    """Frees the calling thread's OpenMP pool, which its next parallel operation makes again."""
    if library := _openmp():
        library.omp_pause_resource_all(OMP_PAUSE_SOFT)


def openmp_thread_setter() -> Callable[[int], None] | None:
    """Returns what sets the calling thread's number of OpenMP threads alone; None without OpenMP of torch's own."""
    library = _openmp()
    return library.omp_set_num_threads if library else None


@cache
def _openmp() -> ctypes.CDLL | None:
    """The library that torch has loaded; None if it is older than OpenMP 5, or part of the system."""
    folder = Path(torch.__file__).parent / "lib"
    for path in (one for pattern in OPENMP_FILES for one in sorted(folder.glob(pattern))):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_pause_resource_all"):
            return library
    return None
