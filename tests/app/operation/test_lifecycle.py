"""From start to stop: live at once, ready when the model is, dead when the engine is, and a drain that ends."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2
import pytest

from app.core.settings import Settings
from app.main import create_app
from steering.errors import ModelLoadFailed
from steering.store.store import Store
from tests.app.changed_store import changed, fails
from tests.app.conftest import BASE_URL, Server, StartServer, events_of, state
from tests.fakes import ScriptedEngine
from tests.memory_store import memory_store
from tests.polling import until

ASK = {"prompt": "a", "max_tokens": 4}


def code(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


async def test_the_port_answers_while_the_model_loads(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    go = threading.Event()

    def slow(_: Settings) -> ScriptedEngine:
        assert go.wait(20)
        return ScriptedEngine()

    app = create_app(Settings(), slow, memory_store)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE_URL)
        await stack.enter_async_context(client)
        assert (await client.get("/health/live")).status_code == 200
        for path in ("/health", "/health/ready", "/v1/capabilities"):
            answer = await client.get(path)
            assert code(answer) == (503, "not_ready")
            assert answer.headers["retry-after"]
        assert code(await client.post("/v1/generate", json=ASK)) == (503, "not_ready")
        assert all(record.levelname == "INFO" for record in caplog.records), "a start is no failure"
        assert "request_failed" in caplog.text
        assert (await client.get("/v1/vectors")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        go.set()
        await asyncio.wait_for(state(app).loaded.wait(), 10)
        assert (await client.get("/health/ready")).json() == {"status": "ok"}
        assert (await client.post("/v1/generate", json=ASK)).status_code == 200


async def test_a_model_that_cannot_be_loaded_is_reported(start: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Settings) -> ScriptedEngine:
        raise ModelLoadFailed("no such folder")

    app = create_app(Settings(), broken, memory_store)
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(state(app).loaded.wait(), 10)
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE_URL)
        assert code(await client.get("/health/ready")) == (503, "model_load_failed")
        assert "no such folder" in caplog.text
        assert "Traceback" not in caplog.text
        assert (await client.get("/health/live")).status_code == 200
        await client.aclose()


async def test_a_dead_engine_is_not_healthy(server: Server) -> None:
    await server.engine.close()
    assert code(await server.client.get("/health/ready")) == (503, "engine_dead")
    answer = await server.client.post("/v1/generate", json=ASK)
    assert code(answer) == (503, "engine_dead")
    assert answer.headers["retry-after"]


async def test_a_store_that_does_not_answer_is_not_ready_but_resolved_work_goes_on() -> None:
    async def unreachable(settings: Settings) -> Store:
        return changed(await memory_store(settings), ping=fails)

    app = create_app(Settings(), lambda _: ScriptedEngine(), unreachable)
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(state(app).loaded.wait(), 10)
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE_URL)
        assert code(await client.get("/health/ready")) == (503, "store_unavailable")
        assert (await client.post("/v1/generate", json={**ASK, "steering": []})).status_code == 200
        await client.aclose()


async def test_readiness_asks_the_store_once_for_many_probes() -> None:
    store = await memory_store()
    asked = 0
    answering = store.ping

    async def counted() -> None:
        nonlocal asked
        asked += 1
        await answering()

    async def opened(_: Settings) -> Store:
        return changed(store, ping=counted)

    app = create_app(Settings(), lambda _: ScriptedEngine(), opened)
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(state(app).loaded.wait(), 10)
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE_URL)
        probes = [client.get("/health/ready") for _ in range(50)]
        assert {answer.status_code for answer in await asyncio.gather(*probes)} == {200}
        assert 0 < asked < 50
        await client.aclose()


async def test_a_drain_refuses_new_work_and_lets_the_old_end(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate), drain_seconds=20)
    plain = asyncio.create_task(server.client.post("/v1/generate", json=ASK))
    stream = asyncio.create_task(server.client.post("/v1/generate", json={**ASK, "stream": True}))
    await until(lambda: server.engine.stats().running == 2)
    drain = asyncio.create_task(server.state.drain())
    await until(lambda: server.state.draining)
    for path in ("/v1/generate", "/v1/compare"):
        answer = await server.client.post(path, json=ASK)
        assert code(answer) == (503, "draining")
        assert answer.headers["retry-after"]
    assert code(await server.client.get("/health/ready")) == (503, "draining")
    assert (await server.client.get("/health/live")).status_code == 200
    assert not drain.done()
    gate.set()
    await asyncio.wait_for(drain, 10)
    assert (await plain).status_code == 200
    assert events_of((await stream).text)[-1][0] == "done"


async def test_at_the_deadline_what_still_runs_ends_with_an_error(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()), drain_seconds=0.3)
    plain = asyncio.create_task(server.client.post("/v1/generate", json=ASK))
    stream = asyncio.create_task(server.client.post("/v1/generate", json={**ASK, "stream": True}))
    await until(lambda: server.engine.stats().running == 2)
    await asyncio.wait_for(server.state.drain(), 10)
    assert code(await plain) == (503, "draining")
    name, data = events_of((await stream).text)[-1]
    assert (name, data["error"]["code"]) == ("error", "draining")
    assert server.engine.stats().running == 0


async def test_a_request_has_a_longest_life(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()), request_seconds=1.0)
    assert code(await server.client.post("/v1/generate", json=ASK)) == (503, "request_timed_out")
    streamed = await server.client.post("/v1/generate", json={**ASK, "stream": True})
    assert events_of(streamed.text)[-1][1]["error"]["code"] == "request_timed_out"
    assert server.engine.stats().running == 0


async def test_a_body_that_dribbles_is_given_up(start: StartServer) -> None:
    server = await start(body_seconds=0.2)

    async def dribble() -> AsyncIterator[bytes]:
        yield b'{"prompt": '
        await asyncio.sleep(30)
        yield b'"a"}'

    answer = await server.client.post("/v1/generate", content=dribble(), headers={"content-type": "application/json"})
    assert code(answer) == (400, "invalid_request")


@pytest.mark.parametrize("times", [1, 2])
async def test_two_servers_in_one_process_know_nothing_of_each_other(start: StartServer, times: int) -> None:
    one, other = await start(), await start()
    for _ in range(times):
        await one.register()
    assert (await other.client.get("/v1/vectors")).json()["data"] == []
    assert (await one.client.get("/v1/vectors/sentiment")).json()["version"] == times
