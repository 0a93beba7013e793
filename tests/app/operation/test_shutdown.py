"""SIGTERM on a real process: not ready at once, streams ended properly, the process gone in time with code 0."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
import pytest

from tests.app.conftest import events_of
from tests.forked_process import ForkedProcess

GONE = 20.0
"""Seconds in which a process must be gone, on a machine however busy. What it would wait for otherwise takes far longer."""


class Process:
    """A server process and the address it printed."""

    def __init__(self, process: ForkedProcess, address: str) -> None:
        self.process = process
        self.client = httpx2.AsyncClient(base_url=address, timeout=30)

    async def gone(self) -> int:
        """The exit code, once the process has ended within the time."""
        return await asyncio.to_thread(self.process.wait, GONE)


Launch: TypeAlias = Callable[..., Awaitable[Process]]


@pytest.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Launch]:
    """Starts server processes and ends them after the test."""
    started: list[Process] = []
    stack = ExitStack()

    async def launched(**options: Any) -> Process:
        log = tmp_path / f"server-{len(started)}.log"
        process = ForkedProcess("tests.app.serve_scripted", options, log=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        one = Process(process, await asyncio.to_thread(process.address))
        started.append(one)
        return one

    with stack:
        yield launched
        for one in started:
            await one.client.aclose()


async def ready(server: Process) -> None:
    """Waits until the engine is there."""
    async with asyncio.timeout(30):
        while (await server.client.get("/health/ready")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def draining(server: Process) -> None:
    """Waits until it says that it is no longer ready, and why."""
    async with asyncio.timeout(30):
        while (answer := await server.client.get("/health/ready")).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def begun(server: Process, count: int) -> list[asyncio.Task[str]]:
    """Streams that have had their first token, and whose whole text the tasks return."""
    started = [asyncio.Event() for _ in range(count)]

    async def follow(one: asyncio.Event) -> str:
        text = ""
        async with server.client.stream("POST", "/v1/generate", json={"prompt": "a", "stream": True}) as answer:
            async for piece in answer.aiter_text():
                text += piece
                one.set()
        return text

    tasks = [asyncio.create_task(follow(one)) for one in started]
    async with asyncio.timeout(30):
        await asyncio.gather(*(one.wait() for one in started))
    return tasks


async def test_streams_are_finished_while_new_work_is_refused(launch: Launch, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server = await launch(gate_file=str(gate), settings={"drain_seconds": 60})
    await ready(server)
    streams = await begun(server, 5)
    server.process.send_signal(signal.SIGTERM)
    await draining(server)
    refused = await server.client.post("/v1/generate", json={"prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"]
    assert not any(stream.done() for stream in streams)
    gate.touch()
    for text in await asyncio.gather(*streams):
        assert events_of(text)[-1][0] == "done"
    assert await server.gone() == 0


async def test_at_the_deadline_streams_end_with_an_error_event_and_the_process_with_0(launch: Launch) -> None:
    server = await launch(engine={"token_seconds": 0.1, "length": 100_000}, settings={"drain_seconds": 1})
    await ready(server)
    streams = await begun(server, 5)
    server.process.send_signal(signal.SIGTERM)
    assert await server.gone() == 0
    for text in await asyncio.gather(*streams):
        name, data = events_of(text)[-1]
        assert (name, data["error"]["code"]) == ("error", "draining")


async def test_an_idle_server_goes_at_once_and_a_second_signal_ends_a_drain(launch: Launch) -> None:
    idle = await launch(settings={"drain_seconds": 60})
    await ready(idle)
    idle.process.send_signal(signal.SIGINT)
    assert await idle.gone() == 0
    busy = await launch(engine={"token_seconds": 0.1, "length": 100_000}, settings={"drain_seconds": 60})
    await ready(busy)
    streams = await begun(busy, 1)
    busy.process.send_signal(signal.SIGTERM)
    await draining(busy)  # or the two would be one: a signal that is pending is not counted again
    busy.process.send_signal(signal.SIGTERM)
    assert await busy.gone() == 0
    await asyncio.gather(*streams, return_exceptions=True)


async def test_during_the_delay_the_server_is_not_ready_and_accepts_requests(launch: Launch) -> None:
    server = await launch(settings={"drain_delay_seconds": 60, "drain_seconds": 60})
    await ready(server)
    server.process.send_signal(signal.SIGTERM)
    await draining(server)
    for _ in range(3):
        assert (await server.client.post("/v1/generate", json={"prompt": "a"})).status_code == 200
    assert (await server.client.get("/health/live")).status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert await server.gone() == 0


async def test_after_the_delay_it_drains(launch: Launch) -> None:
    server = await launch(engine={"token_seconds": 0.1, "length": 100_000}, settings={"drain_delay_seconds": 0.5})
    await ready(server)
    streams = await begun(server, 1)
    server.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        while (await server.client.post("/tokenize", json={"prompt": "a"})).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    refused = await server.client.post("/v1/generate", json={"prompt": "a"})
    assert refused.json()["error"]["code"] == "draining"
    server.process.send_signal(signal.SIGTERM)
    assert await server.gone() == 0
    await asyncio.gather(*streams, return_exceptions=True)


async def test_a_signal_while_loading_is_not_waited_for(launch: Launch) -> None:
    server = await launch(load_seconds=60, settings={"drain_seconds": 30})
    assert (await server.client.get("/health/live")).status_code == 200
    assert (await server.client.get("/health/ready")).json()["error"]["code"] == "not_ready"
    server.process.send_signal(signal.SIGTERM)
    assert await server.gone() == 0


async def test_a_model_that_cannot_be_loaded_ends_the_process_with_1(launch: Launch) -> None:
    server = await launch(broken=True)
    assert await server.gone() == 1
