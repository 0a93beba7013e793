"""Limits of one key on rows of the batch, unfinished jobs and stored bytes; other keys are not affected."""

import asyncio
import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from app.core.admission import Key, RateLimits
from app.core.errors import RateLimited
from steering.errors import LimitExceeded
from steering.schemas.governance import KeyLimitsFields
from tests.app.api.test_batch import output, started
from tests.app.api.test_extract import PAIRS
from tests.app.conftest import Server, StartServer, refusal
from tests.app.policy.conftest import tiny_engine
from tests.app.policy.governed_routes import CHOICES, SCORE_ITEMS
from tests.app.policy.test_keys import ADMIN, BEARER, ask, bearer, code, created
from tests.fakes import ScriptedEngine
from tests.polling import until

EXTRACT: dict[str, Any] = {"name": "mood", "pairs": PAIRS, "method": "trained", "training": {"steps": 2000}}


@pytest.fixture
async def waiting(start: StartServer) -> tuple[Server, asyncio.Event]:
    """A server whose engine generates nothing until the event is set."""
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    return server, gate


async def test_rows_of_a_key_are_limited(waiting: tuple[Server, asyncio.Event]) -> None:
    server, gate = waiting
    key = await created(server, limits={"rows": 3})
    first = asyncio.create_task(ask(server, key, n=2))
    while server.engine.stats().running == 0:  # noqa: ASYNC110 - counted by the engine
        await asyncio.sleep(0.01)
    refused = await ask(server, key, n=2)
    assert code(refused) == (429, "rate_limited")
    assert float(refused.headers["retry-after"]) > 0
    never = await ask(server, key, n=4)
    assert code(never) == (400, "limit_exceeded"), "no wait would help"
    gate.set()
    assert (await first).status_code == 200
    assert (await ask(server, key, n=3)).status_code == 200
    assert (await ask(server, {"key": ADMIN}, n=4)).status_code == 200


async def test_a_batch_runs_as_many_rows_as_its_key_may_have(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    server = await start(tiny_engine(hf_byte_tokenizer), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, scopes=["generate", "read"], limits={"rows": 4})
    beyond = await ask(server, key, n=5)
    server.client.headers.update(bearer(key["key"]))
    lines = [{"prompt": "a", "max_tokens": 16, "n": n} for n in (2,) * 30]
    job = await started(server, {"prompt": "a", "n": 5}, *lines)
    running = []

    def is_done() -> bool:
        running.append(server.engine.stats().background_running)
        return server.state.jobs.live(job["id"]) is None

    await until(is_done)
    first, *others = await output(server, job)
    assert first["error"] == refusal(beyond)
    assert [len(one["response"]["choices"]) for one in others] == [2] * 30
    assert 0 < max(running) <= 4


async def test_unfinished_jobs_of_a_key_are_limited(start: StartServer) -> None:
    server = await start(ScriptedEngine(token_seconds=0.002), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = bearer((await created(server, scopes=["write", "read"], limits={"jobs": 1}))["key"])
    job = await server.client.post("/v1/vectors/extract", json=EXTRACT, headers=key)
    assert job.status_code == 202
    for path in ("/v1/vectors/extract", "/v1/vectors/extract?wait=true"):
        refused = await server.client.post(path, json=EXTRACT, headers=key)
        assert code(refused) == (429, "rate_limited")
        assert float(refused.headers["retry-after"]) > 0
    other = await server.client.post("/v1/vectors/extract", json=EXTRACT)
    assert other.status_code == 202, "other keys are not affected"
    await server.client.delete(f"/v1/jobs/{job.json()['id']}", headers=key)
    assert (await server.client.post("/v1/vectors/extract", json=EXTRACT, headers=key)).status_code == 202


async def test_batches_of_scores_and_choices_are_jobs_of_a_key(waiting: tuple[Server, asyncio.Event]) -> None:
    server, gate = waiting
    key = bearer((await created(server, scopes=["write", "read", "generate"], limits={"jobs": 1}))["key"])
    lines = {**key, "content-type": "application/jsonl"}
    generation = await server.client.post("/v1/generate/batch", content='{"prompt": "a"}', headers=lines)
    assert generation.status_code == 202
    refused = await server.client.post("/v1/score/batch", content=json.dumps(SCORE_ITEMS), headers=lines)
    assert code(refused) == (429, "rate_limited")
    refused = await server.client.post("/v1/evaluations", json={**CHOICES, "steering": []}, headers=key)
    assert code(refused) == (429, "rate_limited")
    gate.set()
    await server.client.get(f"/v1/jobs/{generation.json()['id']}/events", headers=key)
    answer = await server.client.post("/v1/evaluations?wait=true", json={**CHOICES, "steering": []}, headers=key)
    assert answer.status_code == 200, answer.text


async def test_bytes_of_a_key_are_limited(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    size = len((await server.register("measured")) and (await server.client.get("/v1/vectors/measured/export")).content)
    fields = {"scopes": ["write", "read"], "namespace": "small"}
    key = bearer((await created(server, **fields, limits={"storage_bytes": int(2.5 * size)}))["key"])
    body = {"name": "measured", "directions": {"1": [1.0] * 8, "2": [1.0] * 8}}
    for _ in range(2):
        assert (await server.client.post("/v1/vectors", json=body, headers=key)).status_code == 201
    refused = await server.client.post("/v1/vectors", json=body, headers=key)
    assert code(refused) == (507, "storage_full")
    assert refused.headers["x-should-retry"] == "false"
    assert str(int(2.5 * size)) in refused.text
    assert (await server.client.get("/v1/vectors/measured", headers=key)).json()["version"] == 2, "nothing was stored"
    assert (await server.client.post("/v1/vectors", json=body)).status_code == 201, "other keys are not affected"
    assert (await server.client.delete("/v1/vectors/measured?version=1", headers=key)).status_code == 204
    assert (await server.client.post("/v1/vectors", json=body, headers=key)).status_code == 201
    none = bearer((await created(server, **fields, limits={"storage_bytes": 0}))["key"])
    assert code(await server.client.post("/v1/vectors", json=body, headers=none)) == (507, "storage_full")


def test_what_a_key_has_used_still_counts_when_the_number_of_servers_changes() -> None:
    limits, key = (
        RateLimits(),
        Key("key-a", frozenset({"generate"}), KeyLimitsFields(requests_per_minute=60)),
    )
    for _ in range(30):
        limits.admit(key)
    for servers in (2, 3, 6):
        limits.servers = servers
        with pytest.raises(RateLimited):
            limits.admit(key)
    limits.servers = 1
    limits.admit(key)


def test_a_share_of_rows_is_named_as_one() -> None:
    limits, key = RateLimits(), Key("key-a", frozenset({"generate"}), KeyLimitsFields(rows=4))
    limits.servers = 2
    with pytest.raises(LimitExceeded, match="this key may use 2 on each of 2 servers"):
        limits.take_rows(key, 4, 4)
    limits.take_rows(key, 2, 2)
    with pytest.raises(RateLimited, match="2 rows at once on each of 2 servers"):
        limits.take_rows(key, 1, 1)
