"""Events -> text/event-stream: the only place that frames. Knows nothing of what the events say."""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import structlog
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.http.errors import body_of, hidden
from steering.errors import LimitExceeded, SteeringError

log = structlog.get_logger(__name__)

KEEPALIVE = b": keep-alive\n\n"
STRAIGHT_SEND = "straight_send"
"""Where the scope's state has the server's own `send`, past every wrapper. Wrappers look at the start of an answer alone;
a stream that has begun need not pass its pieces through each of them."""
LONGEST_PAUSE = 1.0
"""Seconds between two looks at a stream that is busy with itself."""
_EVENT_NAME = re.compile(r"[a-z_]{1,32}")


class Event(NamedTuple):
    """One event: a name of ours (None for OpenAI streams) and its data: a word of the wire, of which keys without a
    value are left out, JSON-ready values, JSON already written in ASCII, or literal text such as [DONE]."""

    data: Any
    name: str | None = None


@dataclass(frozen=True, slots=True)
class StreamTimeouts:
    """How long a stream waits: before a comment, for a reader that takes nothing, and in all."""

    keepalive_seconds: float
    stall_seconds: float
    life_seconds: float


def frame(event: Event) -> bytes:
    """The bytes of one event. JSON in ASCII has no line break of any kind, so no text inside can forge an event."""
    data = event.data
    if isinstance(data, BaseModel):
        data = data.model_dump_json(exclude_none=True, ensure_ascii=True)
    elif isinstance(data, str):
        assert not {"\n", "\r"} & set(data), "literal data is one line"
    elif not isinstance(data, bytes):
        data = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return b"%b%b\n\n" % (_opening(event.name), data if isinstance(data, bytes) else data.encode())


@cache
def _opening(name: str | None) -> bytes:
    """What stands before an event's data."""
    if name is None:
        return b"data: "
    assert _EVENT_NAME.fullmatch(name), "event names are ours, never a caller's"
    return f"event: {name}\ndata: ".encode()


def error_event(error: SteeringError) -> Event:
    """The `error` event of native streams."""
    return Event(body_of(error), "error")


class EventStream(Response):
    """Sends events as they come, a comment when none does, and closes the source however it ends.

    It ends early when the client leaves (the source is closed: that is the cancel), when the client takes nothing
    for `stall_seconds`, when it is older than `life_seconds`, or when `interrupted` resolves to an error. The last
    two are told in the stream, as is any failure of the source. `first` is the first event, if it is under way.

    An event goes straight from the source to the wire; what else must be minded is looked after by a slow watch.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        patience: StreamTimeouts,
        interrupted: "asyncio.Future[SteeringError]",
        first: "asyncio.Future[Event | None] | None" = None,
        on_failure: Callable[[SteeringError], tuple[Event, ...]] = lambda error: (error_event(error),),
    ) -> None:
        super().__init__(None, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._patience, self._first = events, patience, first
        self._interrupted, self._on_failure = interrupted, on_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = _Wire(send, scope.get("state", {}).get(STRAIGHT_SEND, send))
        leaving = asyncio.ensure_future(gone(receive))
        pumping = asyncio.ensure_future(self._pump(wire))
        failure: SteeringError | None = None
        try:
            await wire.start(self.status_code, self.raw_headers)
            await self._watch(wire, pumping, leaving)
        except _ReaderLost:
            return
        except Exception as error:
            if not isinstance(error, SteeringError):
                log.exception("stream_failed")
            failure = hidden(error)
        finally:
            for task in (leaving, pumping, self._first):
                if task is not None:
                    await ended(task)
            await self._events.aclose()
        with suppress(_ReaderLost):
            await _within(self._patience.stall_seconds, self._end(wire, failure))

    async def _end(self, wire: "_Wire", failure: SteeringError | None) -> None:
        for event in () if failure is None else self._on_failure(failure):
            await wire.write(frame(event))
        await wire.finish()

    async def _pump(self, wire: "_Wire") -> None:
        await wire.started.wait()
        event = await (self._first or next_event(self._events))
        if event is not None:
            await wire.write(frame(event))
        async for event in self._events:
            await wire.write(frame(event))

    async def _watch(self, wire: "_Wire", pumping: "asyncio.Future[None]", leaving: "asyncio.Future[None]") -> None:
        """Returns when all has been sent. Raises what ends the stream early."""
        patience = self._patience
        until = wire.now() + patience.life_seconds
        awaited: set[asyncio.Future[Any]] = {pumping, leaving, self._interrupted}
        while True:
            pause = min(LONGEST_PAUSE, patience.keepalive_seconds, patience.stall_seconds, until - wire.now())
            await asyncio.wait(awaited, timeout=max(pause, 0.0), return_when=asyncio.FIRST_COMPLETED)
            if pumping.done():
                return pumping.result()
            if leaving.done() or wire.stalled(patience.stall_seconds):
                raise _ReaderLost
            if self._interrupted.done():
                raise self._interrupted.result()
            if wire.now() >= until:
                raise LimitExceeded(f"the request took longer than {patience.life_seconds:g} s")
            if wire.silent(patience.keepalive_seconds):
                await _within(patience.stall_seconds, wire.write(KEEPALIVE))


class _Wire:
    """The way to the client: writes whole frames, and knows since when it has been waiting or silent."""

    def __init__(self, send: Send, straight: Send) -> None:
        self._send, self._straight = send, straight
        self._writing_since: float | None = None
        self._last = self.now()
        self.started = asyncio.Event()

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def stalled(self, seconds: float) -> bool:
        """Whether one write has been waiting for the reader so long."""
        return self._writing_since is not None and self.now() - self._writing_since >= seconds

    def silent(self, seconds: float) -> bool:
        """Whether nothing is being written and nothing was for so long."""
        return self._writing_since is None and self.now() - self._last >= seconds

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._pass_on({"type": "http.response.start", "status": status, "headers": headers})
        self.started.set()

    async def write(self, chunk: bytes) -> None:
        self._writing_since = self._last = self.now()
        try:  # not by _pass_on: this is called for every token
            await self._straight({"type": "http.response.body", "body": chunk, "more_body": True})
        except OSError:
            raise _ReaderLost from None
        self._writing_since = None

    async def finish(self) -> None:
        await self._pass_on({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass_on(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            raise _ReaderLost from None


class _ReaderLost(Exception):
    """The client is gone or takes nothing: there is nobody to tell."""


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Work that waits for the reader. Raises _ReaderLost when it takes too long."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        raise _ReaderLost from None


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
