"""The default steering is resolved once, held in memory, and never stops plain traffic."""

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from typing import Any, cast

import httpx2
import pytest
from sqlalchemy import insert
from structlog.testing import capture_logs

from app.core.settings import Settings
from app.main import create_app
from steering.store.records import now
from steering.store.store import NamespaceStore, Store
from steering.store.tables import DefaultSteeringRow
from tests.app.changed_store import fails, lasting
from tests.app.conftest import BASE_URL, Server, state
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL

ASK = {"prompt": "a", "max_tokens": 2}
DEFAULT = {"interventions": [{"vector": "sentiment", "strength": 0.5}]}
PARTS = {"keys", "audit", "documents", "outputs", "servers", "shared"} | {
    part.name for part in fields(NamespaceStore)
} - {"namespace"}
"""What a store and its namespaces are made of."""


class _Broken:
    def __getattr__(self, name: str) -> Any:
        if name == "in_namespace":
            return lambda *_: _Broken()
        return _Broken() if name in PARTS else fails


def broken_store() -> Store:
    """Returns a store of which every method raises."""
    return cast(Store, _Broken())


async def applied(client: httpx2.AsyncClient) -> dict[str, Any]:
    """Returns the steering that a request without any gets."""
    answer = await client.post("/v1/generate", json=ASK)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["steering"]
    return found


async def test_plain_traffic_needs_no_store(server: Server) -> None:
    await server.register()
    assert (await server.client.put("/v1/steering", json=DEFAULT)).status_code == 200
    kept, server.state.jobs.store = server.state.jobs.store, broken_store()
    assert [one["vector"] for one in (await applied(server.client))["applied"]] == ["sentiment@1"]
    assert (await server.client.get("/v1/vectors")).status_code == 503
    await asyncio.sleep(0)
    server.state.jobs.store = kept


async def test_a_new_version_of_the_name_changes_nothing(server: Server) -> None:
    await server.register()
    await server.client.put("/v1/steering", json=DEFAULT)
    await server.register()
    assert [one["vector"] for one in (await applied(server.client))["applied"]] == ["sentiment@1"]
    assert (await server.client.get("/v1/steering")).json()["interventions"][0]["vector"] == "sentiment@1"


async def test_a_vector_that_was_deleted_leaves_traffic_unsteered_until_the_next_start(server: Server) -> None:
    await server.register()
    await server.client.put("/v1/steering", json=DEFAULT)
    await server.client.delete("/v1/vectors/sentiment?force=true")
    assert (await applied(server.client))["applied"], "what is resolved goes on"


async def test_a_default_that_could_not_be_applied_is_tried_again_while_its_text_stays_the_same(server: Server) -> None:
    state = server.state
    row = {"namespace": "shared", "steering": json.dumps(DEFAULT), "updated_at": now()}
    with capture_logs() as logged:
        await state.store.database.change(insert(DefaultSteeringRow).values(row))  # its vector has been deleted
        for _ in range(2):
            await state.default_steering.refresh(state.store, state.engine)
    events = [one["event"] for one in logged]
    assert events.count("default_steering_invalid") == 1, "the same reason is logged once"
    assert (await applied(server.client))["applied"] == []
    await server.register()
    await state.default_steering.refresh(state.store, state.engine)
    assert [one["vector"] for one in (await applied(server.client))["applied"]] == ["sentiment@1"]


@pytest.mark.parametrize("broken", [False, True])
async def test_a_default_that_does_not_fit_the_model_is_a_warning(broken: bool, memory: Store) -> None:
    async def same_store(_: Settings) -> Store:
        return lasting(memory)

    async def serve(engine: ScriptedEngine, stack: AsyncExitStack) -> httpx2.AsyncClient:
        app = create_app(Settings(), lambda _: engine, same_store)
        await stack.enter_async_context(app.router.lifespan_context(app))
        await asyncio.wait_for(state(app).loaded.wait(), 30)
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE_URL)
        return await stack.enter_async_context(client)

    async with AsyncExitStack() as stack:
        client = await serve(ScriptedEngine(), stack)
        directions = {"1": [1.0] * 8}
        await client.post("/v1/vectors", json={"name": "sentiment", "directions": directions})
        await client.put("/v1/steering", json=DEFAULT)
    other = replace(SCRIPTED_MODEL, fingerprint="another") if broken else SCRIPTED_MODEL
    async with AsyncExitStack() as stack:
        logged = stack.enter_context(capture_logs())
        client = await serve(ScriptedEngine(info=other), stack)
        found = await applied(client)
    assert bool(found["applied"]) is not broken
    assert any("default steering is not applied" in warning for warning in found["warnings"]) is broken
    assert ("default_steering_invalid" in [entry["event"] for entry in logged]) is broken
