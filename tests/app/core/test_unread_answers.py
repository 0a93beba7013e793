"""Answers that their client does not read, over real sockets: they hold memory of their request, and no connection for good."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import ClassVar

import httpx2
import pytest

from app.core.middleware import PIECE_BYTES
from app.core.protocol import UNSENT_BYTES, BoundedProtocol
from tests.app.core.listening import Listening
from tests.fakes import ScriptedEngine
from tests.polling import until


class ImpatientProtocol(BoundedProtocol):
    """The protocol with little time for readers, which counts the connections that were lost."""

    stall_seconds = 0.1
    lost: ClassVar[int] = 0

    def connection_lost(self, exc: Exception | None) -> None:
        ImpatientProtocol.lost += 1
        super().connection_lost(exc)


class PatientProtocol(BoundedProtocol):
    """The protocol with a time for readers that no machine exceeds, none for the rest of a body, and one connection."""

    stall_seconds = 300.0
    linger_seconds = 0.0
    max_connections = 1


def request(method: str, path: str, body: bytes = b"", more: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return head.encode() + b"\r\n" + body


GENERATE = b'{"prompt": "a", "max_tokens": 2}'
HEALTH, DOCUMENT = request("GET", "/health/live"), request("GET", "/openapi.json")
UNREAD = {
    "many answers": HEALTH * 1000,
    "a whole answer": DOCUMENT,
    "a last answer": request("GET", "/openapi.json", more="Connection: close\r\n"),
    "a stream": request("POST", "/v1/generate", b'{"prompt": "a", "max_tokens": 3000, "stream": true}'),
    "a file": request("POST", "/v1/activations", json.dumps({"texts": ["a" * 3000], "position": "all"}).encode()),
}


@pytest.mark.parametrize("sent", UNREAD.values(), ids=UNREAD)
async def test_a_client_that_reads_nothing_loses_its_connection(sent: bytes) -> None:
    async with Listening(ScriptedEngine(length=3000), protocol=ImpatientProtocol) as listening:
        listening.send_little_ahead()
        before = ImpatientProtocol.lost
        with await listening.send_unread(sent):
            await until(lambda: ImpatientProtocol.lost > before)
            await until(listening.quiet)


@pytest.fixture
def gate() -> asyncio.Event:
    """Is set when the engine of `patient` may answer."""
    return asyncio.Event()


@pytest.fixture
async def patient(gate: asyncio.Event) -> AsyncIterator[Listening]:
    async with Listening(ScriptedEngine(gate=gate), protocol=PatientProtocol) as listening:
        listening.send_little_ahead()
        yield listening


async def test_a_client_that_has_taken_something_keeps_its_connection(patient: Listening) -> None:
    with await patient.connect_unread(DOCUMENT):
        (connection,) = patient.connections
        left = connection.transport.get_write_buffer_size()
        patient.act(lambda: connection._await_reader(left + 1))
        await patient.turn()
        assert patient.connections == {connection}
        patient.act(lambda: connection._await_reader(left))
        await until(lambda: not patient.connections)


async def test_the_system_takes_little_ahead_of_a_slow_reader() -> None:
    """By itself it takes this answer whole, and megabytes of a longer one at once."""
    async with Listening(ScriptedEngine(), protocol=PatientProtocol) as listening:
        async with httpx2.AsyncClient(timeout=30) as client:
            size = len((await client.get(f"{listening.url}/openapi.json")).content)
        with await listening.connect_unread(DOCUMENT):
            assert 2 * UNSENT_BYTES < size < 1 << 20


async def test_a_whole_answer_counts_until_it_has_been_read(patient: Listening) -> None:
    with await patient.connect_unread(DOCUMENT):
        await patient.turn()
        (connection,) = patient.connections
        assert connection.transport.get_write_buffer_size() <= PIECE_BYTES
        assert patient.state.in_flight == 1
    await until(patient.quiet)


async def test_a_connection_with_a_request_behind_an_answered_one_is_not_idle(
    patient: Listening, gate: asyncio.Event
) -> None:
    reader, writer = await patient.connect()
    writer.write(HEALTH + request("POST", "/v1/generate", GENERATE))
    await until(lambda: patient.engine.stats().running == 1)
    refused, other = await patient.connect()
    async with asyncio.timeout(30):
        assert (await refused.read()).startswith(b"HTTP/1.1 503")
    patient.act(gate.set)
    async with asyncio.timeout(30):
        answers = b""
        while b'"choices"' not in answers:
            answers += await reader.read(1 << 16)
    assert answers.count(b"HTTP/1.1 200") == 2
    for one in (writer, other):
        one.close()


async def test_a_client_that_leaves_ends_all_its_requests(patient: Listening) -> None:
    _, writer = await patient.connect()
    writer.write(request("POST", "/v1/generate", GENERATE) + HEALTH)
    await until(lambda: patient.engine.stats().running == 1)
    writer.transport.abort()
    await until(patient.quiet)


async def test_a_body_behind_an_answered_request_may_arrive_later(patient: Listening, gate: asyncio.Event) -> None:
    patient.act(gate.set)
    reader, writer = await patient.connect()
    sent = request("POST", "/v1/generate", GENERATE)
    writer.write(HEALTH + sent[:-1])
    async with asyncio.timeout(30):
        answers = await reader.readuntil(b"}")
        async with httpx2.AsyncClient(base_url=patient.url, timeout=30) as client:  # the server's loop has turned
            assert (await client.get("/health/live")).status_code == 503
        writer.write(sent[-1:])
        while b'"choices"' not in answers:
            answers += await reader.read(1 << 16)
    writer.close()
