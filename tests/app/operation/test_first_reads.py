"""Until keys, policy and default steering were read once, a server refuses what depends on them; a read that failed is repeated."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Generic, ParamSpec, TypeVar

import httpx2
import pytest
from starlette.requests import Request
from structlog.testing import capture_logs

from app.api.keys import ApiKeys, digest_of
from app.core.errors import InvalidApiKey
from app.core.settings import Settings
from app.main import create_app
from steering.errors import StoreCorrupt, StoreUnavailable
from steering.store.records import KeyRecord
from steering.store.store import NamespaceStore, Store
from tests.app.changed_store import ChangedStore, changed, lasting
from tests.app.conftest import BASE_URL, state
from tests.app.policy.test_keys import code
from tests.fakes import ScriptedEngine
from tests.polling import until

ASK = {"prompt": "a", "max_tokens": 2}
DEFAULT = {"interventions": [{"vector": "sentiment", "strength": 0.5}]}


P = ParamSpec("P")
T = TypeVar("T")


class Gate(Generic[P, T]):
    """A call that fails, or that waits, until the gate is opened."""

    def __init__(self, call: Callable[P, Coroutine[Any, Any, T]], error: Exception | None = None) -> None:
        self._call, self._error = call, error
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self, *args: P.args, **named: P.kwargs) -> T:
        """Calls."""
        self.reached.set()
        if self._error is not None and not self.opened.is_set():
            raise self._error
        await self.opened.wait()
        return await self._call(*args, **named)


class Client(httpx2.AsyncClient):
    """A client, and the event of its server that is set once the model is loaded."""

    loaded: asyncio.Event


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[Client]:
    """Starts a server on a store. Yields at once; the model loads meanwhile."""

    async def opened(_: Settings) -> Store:
        return store

    app = create_app(Settings(), lambda _: ScriptedEngine(), opened)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        Client(transport=transport, base_url=BASE_URL) as client,
    ):
        client.loaded = state(app).loaded
        yield client


@pytest.fixture
async def steered(memory: Store) -> Store:
    """A store with a default steering."""
    async with serving(lasting(memory)) as client:
        await loaded(client)
        body = {"name": "sentiment", "directions": {"1": [1.0] * 8}}
        assert (await client.post("/v1/vectors", json=body)).status_code == 201
        assert (await client.put("/v1/steering", json=DEFAULT)).status_code == 200
    return memory


async def loaded(client: Client) -> None:
    """Waits until the model is loaded."""
    await asyncio.wait_for(client.loaded.wait(), 30)


async def ready(client: httpx2.AsyncClient) -> None:
    """Waits until the server is ready."""
    async with asyncio.timeout(30):
        while (await client.get("/health/ready")).status_code != 200:  # noqa: ASYNC110 - asked as a load balancer does
            await asyncio.sleep(0.01)


async def is_refused(client: httpx2.AsyncClient) -> None:
    """Asserts that the server is not ready and answers nothing that needs the default steering."""
    assert code(await client.get("/health/ready")) == (503, "not_ready")
    for path, body in (("/v1/generate", ASK), ("/v1/completions", {"model": "scripted", **ASK})):
        assert code(await client.post(path, json=body)) == (503, "not_ready"), path


async def is_steered(client: httpx2.AsyncClient) -> None:
    """Asserts that requests without steering get the default."""
    answer = (await client.post("/v1/generate", json=ASK)).json()["steering"]
    assert [one["vector"] for one in answer["applied"]] == ["sentiment@1"]


async def test_nothing_runs_without_the_default_steering_while_it_is_read(steered: Store) -> None:
    gate = Gate(steered.defaults)
    store = changed(lasting(steered), defaults=gate)
    async with serving(store) as client:
        await asyncio.wait_for(gate.reached.wait(), 30)
        await is_refused(client)
        gate.opened.set()
        await loaded(client)
        assert (await client.get("/health/ready")).status_code == 200
        await is_steered(client)


async def test_the_first_read_of_the_default_steering_is_repeated_until_it_succeeds(steered: Store) -> None:
    gate = Gate(steered.defaults, StoreUnavailable("the database does not answer"))
    store = changed(lasting(steered), defaults=gate)
    async with serving(store) as client:
        await loaded(client)
        await is_refused(client)
        refused = await client.put("/v1/steering", json=DEFAULT)
        assert code(refused) == (503, "not_ready")
        gate.opened.set()
        await ready(client)
        await is_steered(client)


async def test_the_log_says_what_is_missing_until_the_server_is_ready(
    steered: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.state")
    caplog.clear()

    def logged() -> list[Any]:
        lines: list[Any] = [line.msg for line in caplog.records if line.name == "app.state"]
        return [line for line in lines if line["event"] in ("not_ready", "ready")]

    gate = Gate(steered.defaults, StoreUnavailable("the database does not answer"))
    store = changed(lasting(steered), defaults=gate)
    async with serving(store) as client:
        await until(lambda: bool(logged()), 30)
        assert [(line["event"], line["reason"]) for line in logged()] == [
            ("not_ready", "the default steering has not been read yet")
        ]
        gate.opened.set()
        await ready(client)
        await until(lambda: len(logged()) > 1, 30)
        assert [line["event"] for line in logged()] == ["not_ready", "ready"]
        assert logged()[1]["model"] == "scripted"


async def test_a_vector_that_could_not_be_read_does_not_switch_the_default_off(steered: Store) -> None:
    gate = Gate(steered.shared.vectors.get, StoreUnavailable("the database does not answer"))

    def gated(found: NamespaceStore) -> NamespaceStore:
        return replace(found, vectors=changed(found.vectors, get=gate))

    async with serving(ChangedStore(lasting(steered), gated)) as client:
        await loaded(client)
        await is_refused(client)
        gate.opened.set()
        await ready(client)
        await is_steered(client)


async def test_a_damaged_default_steering_is_a_warning_and_can_be_replaced(steered: Store) -> None:
    gate = Gate(steered.defaults, StoreCorrupt("the default steering is damaged"))
    store = changed(lasting(steered), defaults=gate)
    async with serving(store) as client:
        await loaded(client)
        assert (await client.get("/health/ready")).status_code == 200
        answer = (await client.post("/v1/generate", json=ASK)).json()["steering"]
        assert answer["applied"] == []
        assert answer["warnings"] == ["the default steering is not applied: the default steering is damaged"]
        assert (await client.put("/v1/steering", json=DEFAULT)).status_code == 200
        await is_steered(client)


async def test_a_server_whose_keys_were_never_read_is_open_to_nobody(memory: Store) -> None:
    await memory.keys.create(KeyRecord("key_1", "team", "0" * 64, ("admin",)))
    gate = Gate(memory.keys.all, StoreUnavailable("the database does not answer"))
    store = changed(lasting(memory), keys=changed(memory.keys, all=gate))
    async with serving(store) as client:
        await loaded(client)
        for method, path in (("GET", "/v1/policy"), ("DELETE", "/v1/policy"), ("GET", "/v1/keys")):
            assert code(await client.request(method, path)) == (503, "not_ready"), path
        assert code(await client.get("/health/ready")) == (503, "not_ready")
        gate.opened.set()
        await ready(client)
        assert code(await client.get("/v1/policy")) == (401, "invalid_api_key")


async def test_a_key_whose_digest_is_damaged_is_named_in_the_log_and_stops_no_other_key(memory: Store) -> None:
    store, keys = memory, ApiKeys(Settings())
    await store.keys.create(KeyRecord("key_1", "damaged", "no digest", ("admin",)))
    await store.keys.create(KeyRecord("key_2", "team", digest_of("secret"), ("admin",)))
    with capture_logs() as logs:
        await keys.refresh(store)
    assert [(one["event"], one["key"], one["reason"]) for one in logs] == [
        ("key_may_do_nothing", "key_1", "its digest cannot be read")
    ]
    assert keys.required, "a server without keys is open"
    assert (await keys.identify(_bearer("secret"))).id == "key_2"
    with pytest.raises(InvalidApiKey):
        await keys.identify(_bearer("no digest"))


def _bearer(secret: str) -> Request:
    return Request({"type": "http", "headers": [(b"authorization", f"Bearer {secret}".encode())]})


async def test_the_first_read_of_the_policy_is_repeated(memory: Store) -> None:
    gate = Gate(memory.documents.get, StoreUnavailable("the database does not answer"))
    store = changed(lasting(memory), documents=changed(memory.documents, get=gate))
    async with serving(store) as client:
        await loaded(client)
        assert code(await client.post("/v1/generate", json=ASK)) == (503, "not_ready")
        gate.opened.set()
        await ready(client)
        assert (await client.post("/v1/generate", json=ASK)).status_code == 200
