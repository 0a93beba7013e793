"""Events -> text/event-stream: the only place that frames. Knows nothing of what the events say."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import body_of, hidden
from steering.errors import LimitExceeded, SteeringError

log = structlog.get_logger(__name__)

KEEPALIVE = b": keep-alive\n\n"
_EVENT_NAME = re.compile(r"[a-z_]{1,32}")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: a name of ours (None for OpenAI streams) and JSON-ready data, or literal text such as [DONE]."""

    data: Any
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stream waits: before a comment, for a reader that takes nothing, and in all."""

    keepalive_seconds: float
    stall_seconds: float
    life_seconds: float


def frame(event: Event) -> bytes:
    """The bytes of one event. JSON in ASCII has no line break of any kind, so no text inside can forge an event."""
    data = event.data if isinstance(event.data, str) else json.dumps(event.data, ensure_ascii=True, allow_nan=False)
    assert not {"\n", "\r"} & set(data), "an event's data is one line"
    if event.name is None:
        return f"data: {data}\n\n".encode()
    assert _EVENT_NAME.fullmatch(event.name), "event names are ours, never a caller's"
    return f"event: {event.name}\ndata: {data}\n\n".encode()


def error_event(error: SteeringError) -> Event:
    """The `error` event of native streams."""
    return Event(body_of(error), "error")


class EventStream(Response):
    """Sends events as they come, a comment when none does, and closes the source however it ends.

    It ends early when the client leaves (the source is closed: that is the cancel), when the client takes nothing
    for `stall_seconds`, when it is older than `life_seconds`, or when `interrupted` resolves to an error. The last
    two are told in the stream, as is any failure of the source. `first` is the first event, if it is under way.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        patience: Patience,
        interrupted: "asyncio.Future[SteeringError]",
        first: "asyncio.Future[Event | None] | None" = None,
        on_failure: Callable[[SteeringError], tuple[Event, ...]] = lambda error: (error_event(error),),
    ) -> None:
        super().__init__(None, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._patience, self._first = events, patience, first
        self._interrupted, self._on_failure = interrupted, on_failure

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.ensure_future(gone(receive))
        sending = asyncio.ensure_future(self._send_all(send))
        try:
            await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await ended(leaving)
            await ended(sending)
        if not sending.cancelled():
            sending.result()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with suppress(OSError, TimeoutError):  # a reader that is gone or stalled has lost its stream
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(self._patience.stall_seconds):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        following = self._first
        until = asyncio.get_running_loop().time() + self._patience.life_seconds
        try:
            while True:
                following = following or asyncio.ensure_future(next_event(self._events))
                await self._wait(following, until)
                if not following.done():
                    yield KEEPALIVE
                    continue
                event, following = following.result(), None
                if event is None:
                    return
                yield frame(event)
        except Exception as error:
            if not isinstance(error, SteeringError):
                log.exception("stream_failed")
            for event in self._on_failure(hidden(error)):
                yield frame(event)
        finally:
            if following is not None:
                await ended(following)
            await self._events.aclose()

    async def _wait(self, following: "asyncio.Future[Event | None]", until: float) -> None:
        """Until the next event is there or a comment is due. Raises what ends the stream early."""
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            raise LimitExceeded(f"the request took longer than {self._patience.life_seconds:g} s")
        awaited: set[asyncio.Future[Any]] = {following, self._interrupted}
        seconds = min(self._patience.keepalive_seconds, left)
        await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._interrupted.done() and not following.done():
            raise self._interrupted.result()


async def next_event(events: AsyncGenerator[Event, None]) -> Event | None:
    """The next event, None at the end."""
    return await anext(events, None)


async def gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def ended(task: "asyncio.Future[Any]") -> None:
    """Cancels a task unless it is done, and waits until it has cleaned up; how it ended is for others to read."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
