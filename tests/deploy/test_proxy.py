"""Caddy with the file of deploy/caddy in front of two server processes: streams pass, and servers come and go unnoticed."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from tests.app.conftest import events_of
from tests.forked_process import ForkedProcess

REPOSITORY = Path(__file__).resolve().parents[2]
CADDY = Path(sys.executable).parent / "caddy"
ASK = {"prompt": "a", "max_tokens": 4}
NUMBERS = count(1)


@asynccontextmanager
async def server(folder: Path, **options: Any) -> AsyncIterator[tuple[ForkedProcess, str]]:
    """A server process over a scripted engine, and its address."""
    process = ForkedProcess("tests.app.serve_scripted", options, log=folder / f"server-{next(NUMBERS)}.log")
    try:
        address = await asyncio.to_thread(process.address)
        yield process, address.removeprefix("http://")
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


@asynccontextmanager
async def proxy(folder: Path, *servers: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of Caddy in front of some servers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "caddy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            CADDY, "run", "--config", REPOSITORY / "deploy" / "caddy" / "Caddyfile", "--adapter", "caddyfile",
            env={**os.environ, **home, "SITE": address, "SERVERS": " ".join(servers)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        async with httpx2.AsyncClient(base_url=address, timeout=60) as client, asyncio.timeout(120):
            while not await answers(client):
                assert process.returncode is None, (folder / "caddy.log").read_text()
                await asyncio.sleep(0.05)
            yield client
    finally:
        process.terminate()
        await process.wait()


async def answers(client: httpx2.AsyncClient) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return (await client.get("/health/ready")).status_code == 200
    return False


BROKEN = 0
"""In place of a status: the connection ended within a response, of which the proxy had passed on a part."""


class Load:
    """Clients that generate, one request after the other, and count the statuses they get."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.statuses: Counter[int] = Counter()
        self._stop = False
        self._tasks = [asyncio.create_task(self._run(client)) for _ in range(6)]

    async def _run(self, client: httpx2.AsyncClient) -> None:
        while not self._stop:
            try:
                status = (await client.post("/v1/generate", json=ASK)).status_code
            except httpx2.TransportError:
                status = BROKEN
            self.statuses[status] += 1

    async def more(self, count: int) -> None:
        """Returns when so many more requests have succeeded."""
        enough = self.statuses[200] + count
        async with asyncio.timeout(60):
            while self.statuses[200] < enough:
                assert not any(task.done() for task in self._tasks), self._tasks
                await asyncio.sleep(0.01)

    async def end(self) -> Counter[int]:
        self._stop = True
        await asyncio.gather(*self._tasks)
        return self.statuses


async def answered(address: str) -> float:
    """Returns how many requests to generate a server has answered, by its own count."""
    async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
        metrics = (await client.get("/metrics")).text
    counts = re.findall(r'steering_http_requests_total\{[^}]*route="/v1/generate"[^}]*\} ([\d.]+)', metrics)
    return sum(map(float, counts))


async def stopped(process: ForkedProcess, address: str, load: Load) -> int:
    """Stops a server as an operator does whose delay is long enough: it ends once the proxy sends it nothing more, however late the
    proxy sees that it is not ready. Returns the exit code."""
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(120):
        before = -1.0
        while (now := await answered(address)) != before:
            before = now
            await load.more(50)
        process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(process.wait, 60)


async def test_a_rolling_restart_is_not_noticed(tmp_path: Path) -> None:
    """Each server is stopped and replaced while clients generate: every request is answered with 200."""
    options = {"engine": {"token_seconds": 0.005}, "settings": {"drain_delay_seconds": 300.0}}
    async with (
        server(tmp_path, **options) as (first, one),
        server(tmp_path, **options) as (second, other),
        proxy(tmp_path, one, other) as client,
    ):
        load = Load(client)
        await load.more(50)
        assert await stopped(first, one, load) == 0
        await load.more(50)
        port = one.rpartition(":")[2]
        async with server(tmp_path, settings={"port": int(port)}):
            async with asyncio.timeout(60):
                while not await answered(one):  # the proxy has seen that it is ready
                    await load.more(10)
            assert await stopped(second, other, load) == 0
            await load.more(50)
            assert (await load.end()).keys() == {200}


async def test_a_killed_server_costs_at_most_the_requests_it_had(tmp_path: Path) -> None:
    options = {"engine": {"token_seconds": 0.005}}
    async with (
        server(tmp_path, **options) as (first, one),
        server(tmp_path, **options) as (_, other),
        proxy(tmp_path, one, other) as client,
    ):
        load = Load(client)
        await load.more(50)
        first.kill()
        await load.more(200)
        statuses = await load.end()
    assert statuses.keys() <= {200, 502, BROKEN}
    assert statuses[502] + statuses[BROKEN] <= 6  # one for each client


async def test_a_stream_passes_piece_by_piece(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with server(tmp_path, gate_file=str(gate)) as (_, one), proxy(tmp_path, one) as client:
        text = ""
        async with client.stream("POST", "/v1/generate", json={**ASK, "stream": True}) as answer:
            async for piece in answer.aiter_text():
                text += piece
                if events_of(text):
                    gate.touch()  # the first token has arrived while the server waits with the others
        assert events_of(text)[-1][0] == "done"


class Relay:
    """Passes connections on to a server, and notes which side closes each: `proxy` or `server`."""

    def __init__(self, server: str) -> None:
        self._host, _, self._port = server.partition(":")
        self.closed: asyncio.Queue[str] = asyncio.Queue()
        self.connections = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one connection on until one side closes it."""
        self.connections += 1
        from_server, to_server = await asyncio.open_connection(self._host, int(self._port))
        sides = {
            asyncio.create_task(passed(reader, to_server)): "proxy",
            asyncio.create_task(passed(from_server, writer)): "server",
        }
        done, left = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        self.closed.put_nowait(sides[done.pop()])
        for task in left:
            task.cancel()
        await asyncio.wait(sides)
        to_server.close()
        writer.close()


async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies bytes until the reader's side closes the connection."""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()


async def test_an_idle_connection_is_closed_by_the_proxy_and_not_by_the_server(tmp_path: Path) -> None:
    """service A19, S3: if the server closed first, a request that is just being sent on the connection would get 502."""
    gate = tmp_path / "gate"
    async with server(tmp_path, gate_file=str(gate)) as (_, one):
        relay = Relay(one)
        listening = await asyncio.start_server(relay.connected, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        try:
            async with proxy(tmp_path, f"127.0.0.1:{port}") as client:
                before = relay.connections
                asked = [asyncio.create_task(client.post("/v1/generate", json=ASK)) for _ in range(3)]
                async with asyncio.timeout(60):  # all at once, so that each has a connection of its own
                    while relay.connections < before + 2:  # noqa: ASYNC110 - counted by the relay
                        await asyncio.sleep(0.01)
                gate.touch()
                assert [(await answer).status_code for answer in asked] == [200] * 3
                async with asyncio.timeout(60):
                    closed = [await relay.closed.get() for _ in range(2)]
                assert closed == ["proxy", "proxy"]
        finally:
            listening.close()
