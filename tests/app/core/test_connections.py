"""Bounds on connections that need no key: heads, trailers, idle and unread connections, over real sockets."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from app.core.protocol import BoundedProtocol
from app.server import KEEP_ALIVE_SECONDS
from tests.app.core.listening import Listening
from tests.fakes import ScriptedEngine
from tests.polling import until

REPOSITORY = Path(__file__).parents[3]
IN_FLIGHT = 12_000_000
"""Bytes that the buffers of two sockets take before the sender notices that the connection is closed."""


class QuickProtocol(BoundedProtocol):
    """The protocol with limits that a test can reach."""

    head_seconds = 0.5
    linger_seconds = 0.5
    max_connections = 20


@pytest.fixture
async def listening() -> AsyncIterator[Listening]:
    """A server with short limits for connections and with a key."""
    async with Listening(ScriptedEngine(), protocol=QuickProtocol, api_keys="a-key-of-this-server") as one:
        yield one


async def finish(writer: asyncio.StreamWriter) -> None:
    """Closes the client's side."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Returns what the server sent until it closed the connection."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), 20)
    return b""


async def sent_until_closed(
    writer: asyncio.StreamWriter, reader: asyncio.StreamReader, piece: bytes, limit: int
) -> int:
    """Sends a piece again and again; returns how many bytes the server took before it closed the connection."""
    ending = asyncio.create_task(closed(reader))
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < limit and not ending.done():
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            await asyncio.sleep(0)
    await finish(writer)
    await ending
    return sent


async def test_trailers_are_bounded_and_never_become_headers(listening: Listening) -> None:
    reader, writer = await listening.connect()
    writer.write(b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    line = b"X-Trailer: " + b"a" * 1000 + b"\r\n"
    assert await sent_until_closed(writer, reader, line, 50_000_000) < IN_FLIGHT


async def test_a_trailer_is_no_key(listening: Listening) -> None:
    reader, writer = await listening.connect()
    writer.write(
        b"GET /v1/vectors HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"0\r\nAuthorization: Bearer a-key-of-this-server\r\n\r\n"
    )
    assert (await closed(reader)).startswith(b"HTTP/1.1 401")
    await finish(writer)


async def test_one_endless_trailer_is_bounded_too(listening: Listening) -> None:
    reader, writer = await listening.connect()
    writer.write(b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ")
    assert await sent_until_closed(writer, reader, b"a" * 10_000, 50_000_000) < IN_FLIGHT


async def test_a_slow_head_is_given_up(listening: Listening) -> None:
    reader, writer = await listening.connect()
    ending = asyncio.create_task(closed(reader))
    with contextlib.suppress(ConnectionError):
        for byte in b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" * 10:
            if ending.done():
                break
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)
    assert await ending == b""
    await finish(writer)


async def test_an_idle_connection_is_closed(listening: Listening) -> None:
    reader, writer = await listening.connect()
    assert await closed(reader) == b""
    await finish(writer)


async def test_a_body_that_nobody_reads_does_not_hold_the_connection(listening: Listening) -> None:
    reader, writer = await listening.connect()
    writer.write(b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (await closed(reader)).startswith(b"HTTP/1.1 401")
    await finish(writer)


async def test_idle_connections_make_way_for_new_ones(listening: Listening) -> None:
    idle = [await listening.connect() for _ in range(60)]
    async with httpx2.AsyncClient(base_url=listening.url, timeout=20) as client:
        assert (await client.get("/health/live")).status_code == 200
    assert len(listening.connections) <= QuickProtocol.max_connections + 1
    for _, writer in idle:
        await finish(writer)


async def test_busy_connections_do_not_make_way() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with Listening(engine, protocol=QuickProtocol) as listening:
        body = b'{"prompt": "a"}'
        head = b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        busy = []
        for _ in range(QuickProtocol.max_connections):
            reader, writer = await listening.connect()
            writer.write(head % len(body) + body)
            busy.append((reader, writer))
        async with asyncio.timeout(20):
            while listening.state.in_flight < QuickProtocol.max_connections:  # noqa: ASYNC110 - counted by the server
                await asyncio.sleep(0.01)
        reader, writer = await listening.connect()
        answer = await closed(reader)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"too_many_connections" in answer
        for one in (writer, *(opened for _, opened in busy)):
            await finish(one)


@pytest.mark.parametrize("sent", [b"FOO / HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 80_000, b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_what_is_no_request_is_answered_like_every_error(listening: Listening, sent: bytes) -> None:
    reader, writer = await listening.connect()
    writer.write(sent)
    head, _, body = (await closed(reader)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nx-request-id: req-" in head
    assert json.loads(body)["error"]["code"] == "invalid_request"
    await finish(writer)


class PatientProtocol(BoundedProtocol):
    """The protocol with a time for half-closed connections that no machine exceeds."""

    linger_seconds = 60.0


GENERATE = b'{"prompt": "a", "max_tokens": 2}'
HEAD = b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def test_a_client_that_has_finished_sending_gets_its_answer() -> None:
    async with Listening(ScriptedEngine(), protocol=PatientProtocol) as listening:
        reader, writer = await listening.connect()
        writer.write(HEAD % len(GENERATE) + GENERATE)
        writer.write_eof()
        answer = await closed(reader)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"choices"' in answer
        await finish(writer)


async def test_a_client_that_has_finished_sending_counts_as_gone_after_a_while() -> None:
    gate = asyncio.Event()
    async with Listening(ScriptedEngine(gate=gate), protocol=QuickProtocol) as listening:
        reader, writer = await listening.connect()
        writer.write(HEAD % len(GENERATE) + GENERATE)
        await until(lambda: listening.engine.stats().running == 1)
        writer.write_eof()
        assert await closed(reader) == b""
        await until(listening.quiet)
        await finish(writer)


def test_idle_connections_stay_open_for_longer_than_the_proxy_keeps_them() -> None:
    (seconds,) = re.findall(r"\bkeepalive (\d+)s", (REPOSITORY / "deploy" / "caddy" / "Caddyfile").read_text())
    assert 2 * int(seconds) <= KEEP_ALIVE_SECONDS
    assert BoundedProtocol.head_seconds >= 2 * int(seconds)
