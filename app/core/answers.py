"""Sends answers. Whole ones are built and serialized in threads: one may contain a hundred thousand numbers, and the event loop
serves everybody. Streams are server-sent events, or files that are never in memory as a whole.

The only module that frames events; it does not know what they mean.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.core.errors import Draining, RequestTimedOut, body_of, public_error
from app.core.settings import Settings
from app.core.state import ServerState
from steering.errors import EngineDead, SteeringError
from steering.threads import run_in_thread

T = TypeVar("T")

KEEPALIVE = b": keep-alive\n\n"
WRITE_BYTES = 1 << 14  # events that are there together are written in pieces of about this size
WATCH_SECONDS = 1.0  # longest pause between two checks of a busy stream
FIRST_EVENT_SECONDS = 0.1  # how long the status of a response waits for the first event
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False)  # json.dumps would build one for every event
_EVENT_NAME = re.compile(r"[a-z_.]{1,48}")
_ENDED_EARLY = (ClientDisconnect, OSError, RequestTimedOut, Draining, EngineDead)
"""What ends a file whose status has been sent: its client has disconnected (also OSError), it took longer than `request_seconds`,
or the server stops, by itself or with its engine (the errors of `ServerState.interrupted`)."""


class Event(NamedTuple):
    """One event of a stream.

    data: a model, whose keys without a value are left out, JSON-ready values, or literal text such as [DONE].
    name: the name of the event. Streams of completions have none.
    """

    data: Any
    name: str | None = None


def frame(event: Event) -> bytes:
    """Returns the bytes of one event. JSON in ASCII contains no line break, so no text inside can forge an event."""
    data = event.data
    if isinstance(data, BaseModel):
        data = data.model_dump_json(exclude_none=True, ensure_ascii=True)
    elif isinstance(data, str):
        assert not {"\n", "\r"} & set(data), "literal data is one line"
    else:
        data = _ENCODER.encode(data)
    return _prefix(event.name) + data.encode() + b"\n\n"


def line(event: Event) -> bytes:
    """Returns the data of one event, JSON-ready values, as a line."""
    return _ENCODER.encode(event.data).encode() + b"\n"


@cache
def _prefix(name: str | None) -> bytes:
    if name is None:
        return b"data: "
    assert _EVENT_NAME.fullmatch(name), "event names are constants of this code, never a caller's"
    return f"event: {name}\ndata: ".encode()


def error_events(error: SteeringError) -> tuple[Event, ...]:
    """Returns how native streams report a failure: by an `error` event."""
    return (Event(body_of(error), "error"),)


OnFailure: TypeAlias = Callable[[SteeringError], tuple[Event, ...]]


class EventStream(Response):
    """Sends events as they arrive, a comment when none does, and closes the source however it ends.

    It ends early when the client disconnects (closing the source cancels the work; BoundedProtocol disconnects one that reads
    nothing), when it is older than `request_seconds`, or when `interrupted` resolves to an error. The last two are reported
    in the stream, as is any failure of the source. `first` is the first event, if it was already requested.
    """

    media_type = "text/event-stream"
    framed = staticmethod(frame)
    keepalive: ClassVar[bytes | None] = KEEPALIVE

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        settings: Settings,
        interrupted: "asyncio.Future[SteeringError]",
        first: "asyncio.Future[Event | None] | None" = None,
        on_failure: OnFailure = error_events,
    ) -> None:
        super().__init__(None, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._settings, self._first = events, settings, first
        self._interrupted, self._on_failure = interrupted, on_failure
        self._held: list[bytes] = []  # added, and not written yet
        self._held_bytes = 0
        self._writing = False  # the last write still waits for the reader
        self._since = 0.0  # when it began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream as the response, once."""
        self._send, self._since = send, time.monotonic()
        leaving = asyncio.ensure_future(disconnected(receive))
        pumping: asyncio.Future[None] | None = None
        failure: SteeringError | None = None
        try:
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await self._write(start)
            pumping = asyncio.ensure_future(self._pump())
            await self._watch(pumping, leaving)
        except _ReaderLost:
            return
        except Exception as error:
            failure = public_error(error)
            scope.setdefault("state", {})["error_code"] = failure.code  # which is counted and logged with the request
        finally:
            for task in (leaving, pumping, self._first):
                if task is not None:
                    await ended(task)
            await self._events.aclose()
        with suppress(_ReaderLost):
            await self._end(failure)

    async def _end(self, failure: SteeringError | None) -> None:
        for event in () if failure is None else self._on_failure(failure):
            self._add(self.framed(event))
        await self._flush()
        await self._write({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self) -> None:
        """Writes the events; those that are there together are one write."""
        event = await (self._first or next_event(self._events))
        while event is not None:
            self._add(self.framed(event))
            if self._held_bytes >= WRITE_BYTES:
                await self._flush()
            event = await self._following()
        await self._flush()

    async def _following(self) -> Event | None:
        """Returns the next event. What was added is written once it is clear that this event is not there yet."""
        following = asyncio.ensure_future(next_event(self._events))
        try:
            await asyncio.sleep(0)
            if not following.done():
                await self._flush()
            return await following
        finally:
            await ended(following)

    async def _watch(self, pumping: "asyncio.Future[None]", leaving: "asyncio.Future[None]") -> None:
        """Returns when all has been sent. Raises what ends the stream early."""
        keepalive = self._settings.keepalive_seconds
        until = time.monotonic() + self._settings.request_seconds
        awaited: set[asyncio.Future[Any]] = {pumping, leaving, self._interrupted}
        while True:
            pause = min(WATCH_SECONDS, keepalive, until - time.monotonic())
            await asyncio.wait(awaited, timeout=max(pause, 0.0), return_when=asyncio.FIRST_COMPLETED)
            now = time.monotonic()
            age = now - self._since
            if pumping.done():
                return pumping.result()
            if leaving.done():
                raise _ReaderLost
            if self._interrupted.done():
                raise self._interrupted.result()
            if now >= until:
                raise RequestTimedOut(f"the request took longer than {self._settings.request_seconds:g} s")
            if not self._writing and age >= keepalive and self.keepalive is not None:
                self._add(self.keepalive)
                await self._flush()

    def _add(self, chunk: bytes) -> None:
        self._held.append(chunk)
        self._held_bytes += len(chunk)

    async def _flush(self) -> None:
        """Writes what was added."""
        if not self._held:
            return
        body = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        self._writing, self._since = True, time.monotonic()
        await self._write({"type": "http.response.body", "body": body, "more_body": True})
        self._writing = False

    async def _write(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            raise _ReaderLost from None


class LineStream(EventStream):
    """Sends the data of events as JSON lines, without event names and keep-alive comments, which are not JSON."""

    media_type = "application/x-ndjson"
    framed = staticmethod(line)
    keepalive = None


class _ReaderLost(Exception):
    """The client has disconnected, so no error can be reported to it."""


async def next_event(events: AsyncGenerator[Event, None]) -> Event | None:
    """Returns the next event, None at the end."""
    return await anext(events, None)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def ended(task: "asyncio.Future[Any]") -> None:
    """Cancels a task unless it is done, and waits for its cleanup; its result is left to others."""
    if task.cancel():
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def while_connected(state: ServerState, receive: Receive, work: Coroutine[Any, Any, T], deadline: float) -> T:
    """Awaits work until its client disconnects, the server must stop, or `deadline` (of time.monotonic) passes.

    Raises ClientDisconnect, the reason of the stop, RequestTimedOut.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(receive))
    try:
        awaited: set[asyncio.Future[Any]] = {working, leaving, state.interrupted}
        left = max(deadline - time.monotonic(), 0.0)
        await asyncio.wait(awaited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientDisconnect
        if state.interrupted.done():
            raise state.interrupted.result()
        raise RequestTimedOut(f"the request took longer than {state.settings.request_seconds:g} s")
    finally:
        await ended(leaving)
        await ended(working)


async def event_stream(
    state: ServerState,
    events: AsyncGenerator[Event, None],
    on_failure: OnFailure = error_events,
    form: type[EventStream] = EventStream,
) -> EventStream:
    """Returns the response of a streaming request; failures are reported as an `error` event, or as `on_failure` says.

    Requests the first event. A failure within FIRST_EVENT_SECONDS (a full queue, say) is raised with its own status.
    """
    first = asyncio.ensure_future(next_event(events))
    try:
        await asyncio.wait({first}, timeout=FIRST_EVENT_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        await ended(first)
        await events.aclose()
        raise
    return form(events, state.settings, state.interrupted, first, on_failure)


class FileStream(Response):
    """Sends the pieces of a file. If its `length` in bytes is known beforehand, it is sent as Content-Length.

    It ends early when the client disconnects, when the response is older than `request_seconds` or the server stops; the client
    then sees that the body is incomplete.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        filename: str,
        state: ServerState,
        *,
        length: int | None = None,
        media_type: str = "application/octet-stream",
    ) -> None:
        super().__init__(None, media_type=media_type)
        self.headers["Content-Disposition"] = f'attachment; filename="{filename}"'
        del self.headers["Content-Length"]
        if length is not None:
            self.headers["Content-Length"] = str(length)
        self._pieces, self._state = pieces, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Sends the file as the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        deadline = time.monotonic() + self._state.settings.request_seconds
        with suppress(*_ENDED_EARLY):
            await while_connected(self._state, receive, self._send(send), deadline)

    async def _send(self, send: Send) -> None:
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Produces every piece in a thread."""
    while (piece := await run_in_thread(next, pieces, None)) is not None:
        yield piece


# Memory in bytes of what an answer is made of
ACTIVATION_BYTES = 8  # float32, and a copy while layers are stacked
SCORE_BYTES = 64  # a Python float in a list, and its text
ALTERNATIVE_BYTES = 512  # one listed token, its log-probability and text included, as objects and as JSON
SHOWN_DAMAGED = 10  # damaged vectors, profiles or jobs that a warning names


async def json_in_thread(
    build: Callable[[], Any], *, status: int = 200, exclude_none: bool = False, exclude_unset: bool = False
) -> Response:
    """Returns the response with what `build` returns, a model or JSON-ready values. `exclude_none` and
    `exclude_unset` are those of `model_dump`."""
    content = await run_in_thread(lambda: json_of(build(), exclude_none=exclude_none, exclude_unset=exclude_unset))
    return Response(content, status, media_type="application/json")


async def event_in_thread(build: Callable[[], BaseModel], name: str) -> Event:
    """Returns the event with what `build` returns."""
    return Event(await run_in_thread(lambda: build().model_dump_json(exclude_none=True, ensure_ascii=True)), name)


def json_of(answer: Any, *, exclude_none: bool = False, exclude_unset: bool = False) -> bytes:
    """Serializes an answer. The serializer holds the interpreter, so the objects of a list in a dict are written one by one."""
    if isinstance(answer, BaseModel):
        return answer.__pydantic_serializer__.to_json(answer, exclude_none=exclude_none, exclude_unset=exclude_unset)
    if isinstance(answer, dict):
        return b"{" + b",".join(_entries(answer)) + b"}"
    return to_json(answer, inf_nan_mode="null")


def _entries(answer: dict[str, Any]) -> Iterator[bytes]:
    for name, value in answer.items():
        several = isinstance(value, list) and value and isinstance(value[0], dict)
        text = b"[" + b",".join(map(json_of, value)) + b"]" if several else json_of(value)
        yield to_json(name) + b":" + text


def damage_warnings(damaged: Sequence[str]) -> tuple[str, ...]:
    """Returns a warning that names damaged vectors, profiles or jobs, which the answer leaves out, if there are any."""
    if not damaged:
        return ()
    more = f" and {len(damaged) - SHOWN_DAMAGED} more" if len(damaged) > SHOWN_DAMAGED else ""
    shown = ", ".join(damaged[:SHOWN_DAMAGED])
    return (f"left out, because their stored bytes are damaged: {shown}{more}; restore or delete them",)
