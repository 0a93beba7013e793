"""A file is sent in pieces, and ends early with a client that leaves or takes too long."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.core.answers import FileStream
from app.core.errors import Draining
from tests.app.conftest import Server, StartServer
from tests.polling import until


class Wire:
    """The server's end of a connection: what was sent. The client may leave, and may pause before it takes the next piece."""

    def __init__(self, pause: float = 0.0) -> None:
        self.messages: list[Any] = []
        self.left = asyncio.Event()
        self._pause = pause

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await asyncio.sleep(self._pause)
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def complete(self) -> bool:
        return not self.messages[-1].get("more_body", True)


async def pieces(count: int, wait: bool = False) -> AsyncIterator[bytes]:
    """Numbered pieces; then, with `wait`, nothing more for ever."""
    for number in range(count):
        yield b"%d;" % number
    if wait:
        await asyncio.Event().wait()


async def sent(file: FileStream, wire: Wire) -> None:
    async with asyncio.timeout(20):
        await file({}, wire.receive, wire.send)


async def test_a_file_with_a_known_length_says_it(server: Server) -> None:
    wire = Wire()
    await sent(FileStream(pieces(3), "a.bin", server.state, length=6), wire)
    headers = dict(wire.messages[0]["headers"])
    assert headers[b"content-length"] == b"6"
    assert headers[b"content-disposition"] == b'attachment; filename="a.bin"'
    assert (wire.body, wire.complete) == (b"0;1;2;", True)


async def test_a_file_of_unknown_length_says_none(server: Server) -> None:
    wire = Wire()
    await sent(FileStream(pieces(2), "a.jsonl", server.state, media_type="application/jsonl"), wire)
    headers = dict(wire.messages[0]["headers"])
    assert b"content-length" not in headers
    assert headers[b"content-type"] == b"application/jsonl"
    assert (wire.body, wire.complete) == (b"0;1;", True)


async def test_a_client_that_leaves_ends_it(server: Server) -> None:
    wire = Wire()
    sending = asyncio.create_task(sent(FileStream(pieces(2, wait=True), "a", server.state), wire))
    await until(lambda: wire.body == b"0;1;")
    wire.left.set()
    await sending
    assert not wire.complete


async def test_a_slow_client_gets_the_whole_file(start: StartServer) -> None:
    server, wire = await start(stall_seconds=0.01), Wire(pause=0.05)
    await sent(FileStream(pieces(3), "a", server.state), wire)
    assert (wire.body, wire.complete) == (b"0;1;2;", True)


@pytest.mark.parametrize("settings", [{"request_seconds": 0.05}, {}])
async def test_the_time_limit_and_the_end_of_the_server_end_it(start: StartServer, settings: dict[str, Any]) -> None:
    server, wire = await start(**settings), Wire()
    sending = asyncio.create_task(sent(FileStream(pieces(1, wait=True), "a", server.state), wire))
    if not settings:
        await until(lambda: wire.body == b"0;")
        server.state.interrupted.set_result(Draining("the server stops"))
    await sending
    assert b"0;".startswith(wire.body)
    assert not wire.complete
