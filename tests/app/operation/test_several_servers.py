"""Two servers on one database: each sees, watches and cancels the other's jobs, ends none, and learns what it changed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.core.admission import RateLimits
from app.core.settings import Settings
from app.main import create_app
from steering.engine.api import Engine
from steering.store import open_store
from tests.app.conftest import BASE_URL, Server, StartServer, events_of, state
from tests.fakes import ScriptedEngine
from tests.polling import holds, until

PAIRS = [{"positive": f"good day {i}", "negative": f"bad day {i}"} for i in range(12)]
JOB = {"name": "mood", "pairs": PAIRS}


class EndlessEngine(ScriptedEngine):
    """A ScriptedEngine that reads the first texts of a job and never the rest: the job makes progress, and does not end by itself."""

    async def _pause(self, index: int) -> None:
        await super()._pause(index)
        if index == 3:
            await asyncio.Event().wait()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return f"sqlite:///{tmp_path}/store.sqlite3"


@pytest.fixture
async def start(database: str) -> AsyncIterator[StartServer]:
    """Starts servers on the database of the test."""
    async with AsyncExitStack() as stack:

        async def started(engine: Engine | None = None, **settings: Any) -> Server:
            chosen = engine or ScriptedEngine()
            app = create_app(Settings(**settings), lambda _: chosen, lambda _: open_store(database))
            await stack.enter_async_context(app.router.lifespan_context(app))
            await asyncio.wait_for(state(app).loaded.wait(), 30)
            client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE_URL, timeout=30)
            await stack.enter_async_context(client)
            return Server(app, chosen, client)

        yield started


async def job_of(server: Server, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await server.client.get(f"/v1/jobs/{job_id}")).json()
    return found


async def test_a_job_runs_on_while_another_server_starts_and_stops(start: StartServer, database: str) -> None:
    first = await start(EndlessEngine())
    job = (await first.client.post("/v1/vectors/extract", json=JOB)).json()
    await until(lambda: first.state.jobs.counts()["running"] == 1)
    second = create_app(Settings(), lambda _: ScriptedEngine(), lambda _: open_store(database))
    async with second.router.lifespan_context(second):
        await asyncio.wait_for(state(second).loaded.wait(), 30)
    assert (await job_of(first, job["id"]))["status"] == "running"
    assert (await first.state.store.shared.jobs.get(job["id"])).status == "running"


async def test_a_job_is_listed_watched_and_cancelled_from_another_server(start: StartServer) -> None:
    owner, other = await start(EndlessEngine(), lease_seconds=6), await start()
    job = (await owner.client.post("/v1/vectors/extract", json=JOB)).json()

    async def in_progress() -> bool:
        return bool((await job_of(other, job["id"]))["progress"])

    await holds(in_progress)
    listed = (await other.client.get("/v1/jobs")).json()["data"]
    assert [(one["id"], one["status"]) for one in listed] == [(job["id"], "running")]
    watching = asyncio.create_task(other.client.get(f"/v1/jobs/{job['id']}/events"))
    cancelled = (await other.client.delete(f"/v1/jobs/{job['id']}")).json()
    assert cancelled["status"] == "cancelled"
    events = events_of((await watching).text)
    assert {name for name, _ in events[:-1]} <= {"progress"}
    assert (events[-1][0], events[-1][1]["status"]) == ("done", "cancelled")
    assert owner.engine.stats().running == 0
    assert (await job_of(owner, job["id"]))["status"] == "cancelled"
    again = await other.client.delete(f"/v1/jobs/{job['id']}")
    assert again.json()["status"] == "cancelled"
    assert (await other.client.delete("/v1/jobs/job-missing")).status_code == 404


async def test_a_stopped_server_leaves_its_jobs_interrupted_for_everyone(start: StartServer, database: str) -> None:
    other = await start()
    stopping = create_app(Settings(), lambda _: EndlessEngine(), lambda _: open_store(database))
    async with stopping.router.lifespan_context(stopping):
        await asyncio.wait_for(state(stopping).loaded.wait(), 30)
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=stopping), base_url=BASE_URL)
        job = (await client.post("/v1/vectors/extract", json=JOB)).json()
        await client.aclose()
        await other.state.jobs.renew()
        assert other.state.jobs.servers == 2
    record = await job_of(other, job["id"])
    assert (record["status"], record["error"]["code"]) == ("failed", "interrupted")
    await other.state.jobs.renew()
    assert other.state.jobs.servers == 1


async def test_keys_take_effect_on_every_server(start: StartServer) -> None:
    one, other = await start(), await start()
    made = (await one.client.post("/v1/keys", json={"name": "ops", "scopes": ["admin"]})).json()
    admin = {"authorization": f"Bearer {made['key']}"}

    async def status(key: str, path: str = "/v1/vectors") -> int:
        return (await other.client.get(path, headers={"authorization": f"Bearer {key}"})).status_code

    async def is_refused_without() -> bool:
        return (await other.client.get("/v1/vectors")).status_code == 401

    await holds(is_refused_without)
    assert await status(made["key"]) == 200
    second = (await one.client.post("/v1/keys", json={"name": "x", "scopes": ["read"]}, headers=admin)).json()

    async def is_known() -> bool:
        return await status(second["key"]) == 200

    await holds(is_known)
    await one.client.delete(f"/v1/keys/{second['id']}", headers=admin)

    async def is_unknown() -> bool:
        return await status(second["key"]) == 401

    await holds(is_unknown)


async def test_a_limit_of_a_key_is_divided_among_the_servers(start: StartServer) -> None:
    admin = "sk-admin-key-of-tests-0123456789"
    one, other = await start(api_keys=admin), await start(api_keys=admin)
    for server in (one, other):
        server.state.rate_limits = RateLimits()
        server.client.headers["authorization"] = f"Bearer {admin}"
    limits = {"requests_per_minute": 6, "tokens_per_minute": 100}
    body = {"name": "x", "scopes": ["generate"], "limits": limits}
    key = (await one.client.post("/v1/keys", json=body)).json()["key"]
    headers = {"authorization": f"Bearer {key}"}
    for server in (one, other):
        await server.state.renew()
        await server.state.keys.refresh(server.state.store)
        big = {"prompt": "a", "max_tokens": 60}
        refused = await server.client.post("/v1/generate", json=big, headers=headers)
        assert refused.status_code == 429
        assert "50 tokens a minute on each of 2 servers" in refused.json()["error"]["message"]
        small = {"prompt": "a", "max_tokens": 2}
        answers = [await server.client.post("/v1/generate", json=small, headers=headers) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]  # the refused one counted too
    await other.state.jobs.close()
    await one.state.renew()
    assert (await one.client.post("/v1/generate", json=small, headers=headers)).status_code == 200


async def test_a_chat_that_names_no_limit_of_tokens_fits_the_share_of_each_server(start: StartServer) -> None:
    admin = "sk-admin-key-of-tests-0123456789"
    one, _ = await start(ScriptedEngine(length=300), api_keys=admin), await start(api_keys=admin)
    one.client.headers["authorization"] = f"Bearer {admin}"
    body = {"name": "x", "scopes": ["generate"], "limits": {"tokens_per_minute": 100}}
    key = (await one.client.post("/v1/keys", json=body)).json()["key"]
    await one.state.renew()
    chat = {"model": "scripted", "messages": [{"role": "user", "content": "a"}]}
    answer = await one.client.post("/v1/chat/completions", json=chat, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 25, "half of its 50 tokens here"


async def test_vectors_profiles_and_the_default_steering_take_effect_on_every_server(start: StartServer) -> None:
    one, other = await start(), await start()
    await one.register()
    steering = {"interventions": [{"vector": "sentiment", "strength": 0.5}]}
    assert (await one.client.put("/v1/profiles/cheerful", json=steering)).status_code == 200
    answer = await other.client.post("/v1/generate", json={"prompt": "a", "steering": {"profile": "cheerful"}})
    assert answer.json()["steering"]["applied"][0]["vector"] == "sentiment@1"
    assert (await one.client.put("/v1/steering", json=steering)).status_code == 200

    async def is_steered() -> bool:
        plain = await other.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2})
        return bool(plain.json()["steering"]["applied"])

    await holds(is_steered)
    await one.client.delete("/v1/steering")

    async def is_plain() -> bool:
        return not await is_steered()

    await holds(is_plain)
