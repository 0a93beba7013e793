"""The framing of streams, and every way in which one can end."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from app.core.answers import KEEPALIVE, WRITE_BYTES, Event, EventStream, frame
from app.core.errors import Draining
from app.core.settings import Settings
from steering.errors import Overloaded, SteeringError
from steering.schemas.generation import TokenPiece


def timeouts(keepalive: float = 60, life: float = 60) -> Settings:
    """Settings with these timeouts in seconds."""
    return Settings(keepalive_seconds=keepalive, request_seconds=life)


class Wire:
    """The server's end of a connection: what was sent, and a client that may leave."""

    def __init__(self) -> None:
        self.sent = b""
        self.writes: list[bytes] = []
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent += message.get("body", b"")
        self.writes += [message["body"]] if message.get("body") else []


class Source:
    """Events one at a time, and whether it was closed."""

    def __init__(self, *events: Event, then: Exception | None = None, wait: bool = False) -> None:
        self.events, self.then, self.wait, self.closed = events, then, wait, False

    async def run(self) -> AsyncGenerator[Event, None]:
        try:
            for event in self.events:
                yield event
            if self.wait:
                await asyncio.Event().wait()
            if self.then is not None:
                raise self.then
        finally:
            self.closed = True


def stream(source: Source, settings: Settings | None = None) -> tuple[EventStream, "asyncio.Future[SteeringError]"]:
    """A stream over a source, and the future that interrupts it."""
    interrupted: asyncio.Future[SteeringError] = asyncio.get_running_loop().create_future()
    return EventStream(source.run(), settings or timeouts(), interrupted), interrupted


async def test_events_are_framed_and_the_source_is_closed() -> None:
    wire, source = Wire(), Source(Event({"a": 1}, "token"), Event("[DONE]"))
    await stream(source)[0]({}, wire.receive, wire.send)
    assert wire.sent == b'event: token\ndata: {"a": 1}\n\ndata: [DONE]\n\n'
    assert source.closed


@pytest.mark.parametrize("failure", [None, Overloaded("no room")])
@pytest.mark.parametrize("groups", [[3], [1, 2, 1], [2, 0, 3], [1, 1, 1]])
async def test_events_that_are_there_together_are_one_write(groups: list[int], failure: Exception | None) -> None:
    numbers = iter(range(100))
    grouped = [[Event({"i": next(numbers)}, "token") for _ in range(count)] for count in groups]

    async def source() -> AsyncGenerator[Event, None]:
        for group in grouped:
            for event in group:
                yield event
            await asyncio.sleep(0.001)
        if failure is not None:
            yield Event({"i": "last"}, "token")
            raise failure

    wire, interrupted = Wire(), asyncio.get_running_loop().create_future()
    await EventStream(source(), timeouts(), interrupted)({}, wire.receive, wire.send)
    expected = [b"".join(map(frame, group)) for group in grouped if group]
    assert wire.writes[: len(expected)] == expected
    rest = b"".join(wire.writes[len(expected) :])
    assert (
        (rest == b"")
        if failure is None
        else (b"last" in rest.split(b"\n\n")[0] and b"overloaded" in rest.split(b"\n\n")[1])
    )


async def test_events_without_a_pause_are_written_in_pieces_of_a_bounded_size() -> None:
    wire, source = Wire(), Source(*[Event({"text": "x" * 1000}, "token")] * 100)
    await stream(source)[0]({}, wire.receive, wire.send)
    assert wire.sent.count(b"event: token") == 100
    assert max(map(len, wire.writes)) < WRITE_BYTES + 1100


@pytest.mark.parametrize(
    "text", ["\n\nevent: done\ndata: {}\n\n", "\r\r", "\u2028\u2029\u0085\x0b\x0c", "\ud800", "\x00"]
)
def test_no_text_can_forge_an_event(text: str) -> None:
    framed = frame(Event({text: text}, "token")).decode("ascii")
    assert len(framed.splitlines()) == 3
    assert json.loads(framed.splitlines()[1].removeprefix("data: ")) == {text: text}


def test_models_are_framed_without_absent_fields() -> None:
    piece = TokenPiece(choice=0, index=1, id=7, text="\u2028é\n")
    framed = b'event: token\ndata: {"choice":0,"index":1,"id":7,"text":"\\u2028\\u00e9\\n"}\n\n'
    assert frame(Event(piece, "token")) == framed


def test_names_and_literal_data_are_ours_alone() -> None:
    for wrong in (Event({}, "a\nb"), Event({}, "A"), Event({}, ""), Event("a\nb"), Event("a\rb")):
        with pytest.raises(AssertionError):
            frame(wrong)
    with pytest.raises(ValueError, match="JSON compliant"):
        frame(Event({"a": float("nan")}))


async def test_silence_is_filled_with_comments() -> None:
    wire, source = Wire(), Source(wait=True)
    running = asyncio.create_task(stream(source, timeouts(keepalive=0.01))[0]({}, wire.receive, wire.send))
    async with asyncio.timeout(10):
        while wire.sent.count(KEEPALIVE) < 3:  # noqa: ASYNC110 - counted in bytes
            await asyncio.sleep(0.01)
    wire.left.set()
    await running
    assert wire.sent.replace(KEEPALIVE, b"") == b""


async def test_a_client_that_leaves_closes_the_source() -> None:
    wire, source = Wire(), Source(Event({}, "token"), wait=True)
    running = asyncio.create_task(stream(source)[0]({}, wire.receive, wire.send))
    await asyncio.sleep(0.05)
    assert not source.closed
    wire.left.set()
    await asyncio.wait_for(running, 10)
    assert source.closed


async def test_an_interruption_is_the_last_event() -> None:
    wire, source = Wire(), Source(Event({}, "token"), wait=True)
    response, interrupted = stream(source)
    interrupted.get_loop().call_later(0.05, interrupted.set_result, Draining("stopping"))
    await asyncio.wait_for(response({}, wire.receive, wire.send), 10)
    assert b'"code": "draining"' in wire.sent.split(b"\n\n")[-2]
    assert source.closed


async def test_failures_are_reported_and_internal_ones_are_hidden() -> None:
    hidden = b"internal_error"
    for failure, code in (
        (Overloaded("full"), b"overloaded"),
        (ValueError("/secret"), hidden),
        (TimeoutError("/secret"), hidden),
        (OSError("/secret"), hidden),
    ):
        wire, source = Wire(), Source(Event({}, "token"), then=failure)
        await stream(source)[0]({}, wire.receive, wire.send)
        last = wire.sent.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\n")
        assert code in last
        assert b"secret" not in wire.sent


async def test_a_stream_has_a_longest_life() -> None:
    wire, source = Wire(), Source(wait=True)
    await asyncio.wait_for(stream(source, timeouts(0.02, 0.1))[0]({}, wire.receive, wire.send), 10)
    assert b"request_timed_out" in wire.sent
    assert source.closed
