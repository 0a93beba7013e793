"""What an operator can measure beside requests: readiness, the event loop, the database, connections, refusals, the process."""

import asyncio
import contextlib
import time

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.core.settings import Settings
from app.core.telemetry import LAG_PAUSE_SECONDS, Metrics
from app.main import create_app
from steering.store.store import Store
from tests.app.changed_store import changed, fails, lasting
from tests.app.conftest import Server, StartServer, state
from tests.app.core.listening import Listening
from tests.app.policy.test_keys import ADMIN, BEARER, ask, created
from tests.fakes import ScriptedEngine
from tests.polling import until


async def measured(client: httpx2.AsyncClient, name: str) -> dict[tuple[str, ...], float]:
    """The values of a series by the values of its labels."""
    return parsed((await client.get("/metrics")).text, name)


def parsed(text: str, name: str) -> dict[tuple[str, ...], float]:
    """The values of a series in a text of metrics."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {tuple(sample.labels.values()): sample.value for sample in samples if sample.name == name}


def now(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The values of a series without a request."""
    return parsed(metrics.render().decode(), name)


async def test_the_process_and_its_libraries_are_measured(server: Server) -> None:
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"):
        assert (await measured(server.client, name))[()] > 0
    assert (await measured(server.client, "python_info")).keys()
    text = (await server.client.get("/metrics")).text
    assert 'torch="' in next(line for line in text.splitlines() if line.startswith("steering_build_info{"))
    assert "_created" not in text, "a second series for every counter"


async def test_a_blocked_event_loop_is_seen(server: Server) -> None:
    metrics, total = server.state.metrics, "steering_event_loop_lag_seconds_sum"
    before = now(metrics, total)[()]
    await asyncio.sleep(0)
    time.sleep(4 * LAG_PAUSE_SECONDS)  # noqa: ASYNC251 - it blocks on purpose
    await until(lambda: now(metrics, total)[()] > before + 2 * LAG_PAUSE_SECONDS)


async def test_readiness_is_measured_with_its_reason(server: Server) -> None:
    assert await measured(server.client, "steering_ready") == {(): 1.0}
    assert await measured(server.client, "steering_not_ready") == {}
    server.state.stopping = True
    assert await measured(server.client, "steering_ready") == {(): 0.0}
    assert await measured(server.client, "steering_not_ready") == {("draining",): 1.0}


async def test_a_policy_that_cannot_be_applied_is_measured(server: Server) -> None:
    await server.state.store.documents.put("policy", {"mandatory": "damaged"})
    await server.state.policy.refresh(server.state.store, server.engine)
    assert await measured(server.client, "steering_not_ready") == {("policy_invalid",): 1.0}


async def test_leases_that_are_not_renewed_and_reads_of_the_database_are_measured(memory: Store) -> None:
    real = memory
    servers = changed(real.servers)

    async def opened(_: Settings) -> Store:
        return changed(lasting(real), servers=servers)

    app = create_app(Settings(lease_seconds=1.0), lambda _: ScriptedEngine(), opened)
    async with app.router.lifespan_context(app):
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1:8000")
        await asyncio.wait_for(state(app).loaded.wait(), 30)
        (renewed,) = (await measured(client, "steering_lease_renewed_timestamp_seconds")).values()
        assert abs(renewed - time.time()) < 60
        servers.__dict__.update(renew=fails)
        metrics = state(app).metrics
        await until(lambda: ("renew",) in now(metrics, "steering_database_failures_total"))
        await until(lambda: now(metrics, "steering_database_read_seconds_count")[()] > 0)
        servers.__dict__.pop("renew")
        await client.aclose()


async def test_refusals_are_counted_by_key_and_limit(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"requests_per_minute": 100, "tokens_per_minute": 1})
    assert (await ask(server, key)).status_code == 429
    assert await measured(server.client, "steering_key_refusals_total") == {(key["id"], "tokens"): 1.0}


@pytest.mark.parametrize("stream", [False, True])
async def test_internal_errors_are_counted_also_in_streams(start: StartServer, stream: bool) -> None:
    server = await start(ScriptedEngine(failure=RuntimeError("broken"), fail_at=1))
    await server.client.post("/v1/generate", json={"prompt": "a", "stream": stream})
    assert (await measured(server.client, "steering_errors_total")).get(("internal_error",)) == 1.0


async def test_refused_hosts_are_counted(server: Server) -> None:
    await server.client.get("/v1/vectors", headers={"host": "elsewhere.example"})
    assert (await measured(server.client, "steering_errors_total")).get(("host_refused",)) == 1.0


async def test_the_series_of_a_deleted_key_are_removed(start: StartServer) -> None:
    """service S6"""
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"tokens_per_minute": 100_000})
    assert (await ask(server, key)).status_code == 200
    names = ("steering_key_requests_total", "steering_key_tokens_total")
    for name in names:
        assert (key["id"],) in await measured(server.client, name)
    assert (await server.client.delete(f"/v1/keys/{key['id']}")).status_code == 204
    text = (await server.client.get("/metrics")).text
    assert key["id"] not in text
    assert "steering_key_requests_total{" in text, "those of other keys stay"


@pytest.mark.parametrize("count", [1, 3])
async def test_open_connections_are_counted(count: int) -> None:
    async with Listening(ScriptedEngine()) as listening, httpx2.AsyncClient(base_url=listening.url) as client:
        opened = [await listening.connect() for _ in range(count)]
        await until(lambda: len(listening.connections) >= count)
        assert await measured(client, "steering_connections") == {(): count + 1.0}
        for _, writer in opened:
            writer.close()


async def test_a_request_that_its_client_left_has_the_label_of_its_route() -> None:
    """service D: 499 by route."""
    async with Listening(ScriptedEngine(token_seconds=0.01, length=100_000)) as listening:
        async with httpx2.AsyncClient(base_url=listening.url) as client:
            left = asyncio.create_task(client.post("/v1/generate", json={"prompt": "a", "max_tokens": 3000}))
            await until(lambda: listening.engine.stats().running > 0)
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await left
        await until(listening.quiet)
        async with httpx2.AsyncClient(base_url=listening.url) as client:
            counted = await measured(client, "steering_http_requests_total")
    assert counted[("POST", "/v1/generate", "499")] == 1.0
