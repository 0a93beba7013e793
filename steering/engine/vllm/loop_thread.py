"""LoopThread: an event loop in a thread of its own, on which vLLM's client lives.

vLLM's client belongs to the loop on which it is first used. Callers may come from other loops, and from several.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from traceback import format_exception
from typing import Any, TypeVar

import structlog

from steering.engine.stream import Stream
from steering.errors import InternalError, SteeringError

log = structlog.get_logger()

T = TypeVar("T")


class LoopThread:
    """Runs coroutines of callers from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Starts a coroutine. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and awaits its result; a caller that is cancelled cancels it."""
        return await asyncio.wrap_future(self.submit(work))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and blocks until it has ended."""
        return self.submit(work).result()

    def stop(self) -> None:
        """Cancels what runs, ends the loop and waits for the thread."""
        self.call(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def reported(work: Coroutine[Any, Any, None], stream: Stream) -> None:
    """Sends what work raises to its stream."""
    try:
        await work
    except Exception as error:
        found = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        if not isinstance(found, SteeringError):
            log.error("request_failed", traceback="".join(format_exception(found)))  # noqa: TRY400 - of the error in a group
            found = InternalError("the engine failed on this request")
        send(stream, found)


def send(stream: Stream, item: object) -> None:
    """Hands an item to the loop of the caller."""
    with suppress(RuntimeError):  # the loop is gone, and with it the caller
        stream.loop.call_soon_threadsafe(stream.receive, [item])
