"""Keys over their life: merged limits, ETags, rotation, the last admin key, the jobs of a key that is deleted."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from app.core.admission import Key, RateLimits
from app.core.errors import RateLimited
from steering.schemas.governance import KeyLimitsFields
from tests.app.api.evaluation_bodies import DOSE
from tests.app.conftest import Server, StartServer, refusal
from tests.app.policy.conftest import tiny_engine
from tests.app.policy.governed_routes import CHOICES, SCORE_ITEMS
from tests.app.policy.test_keys import ADMIN, BEARER, ask, bearer, code, created
from tests.fakes import ScriptedEngine

LINE = {"prompt": "a", "max_tokens": 4}


@pytest.fixture
async def server(start: StartServer) -> Server:
    """A server with one key of the environment, and a vector."""
    one = await start(api_keys=ADMIN)
    one.client.headers.update(BEARER)
    await one.register("mood")
    return one


async def batch(server: Server, key: dict[str, Any], *lines: dict[str, Any]) -> str:
    """Submits a batch and returns its id."""
    content = "\n".join(json.dumps(line) for line in lines).encode()
    headers = {**bearer(key["key"]), "content-type": "application/jsonl"}
    answer = await server.client.post("/v1/generate/batch", content=content, headers=headers)
    assert answer.status_code == 202, answer.text
    found: str = answer.json()["id"]
    return found


async def ended(server: Server, job: str) -> dict[str, Any]:
    """Waits for the end of a job and returns its record."""
    async with asyncio.timeout(30), server.client.stream("GET", f"/v1/jobs/{job}/events") as events:
        await events.aread()
    found: dict[str, Any] = (await server.client.get(f"/v1/jobs/{job}")).json()
    return found


async def test_a_change_of_one_limit_keeps_the_others(server: Server) -> None:
    key = await created(server, limits={"own_steering": "none", "vectors": ["mood"], "rows": 4})
    path = f"/v1/keys/{key['id']}"
    changed = (await server.client.patch(path, json={"limits": {"requests_per_minute": 9}})).json()["limits"]
    assert (changed["own_steering"], changed["vectors"], changed["rows"]) == ("none", ["mood"], 4)
    removed = (await server.client.patch(path, json={"limits": {"rows": None, "own_steering": None}})).json()["limits"]
    assert (removed["rows"], removed["own_steering"], removed["requests_per_minute"]) == (None, "any", 9)


@pytest.mark.parametrize("field", ["name", "scopes", "namespace"])
async def test_null_for_what_a_key_always_has_is_refused(server: Server, field: str) -> None:
    key = await created(server, expires_at="2090-01-01T00:00:00Z", limits={"rows": 4})
    path = f"/v1/keys/{key['id']}"
    refused = await server.client.patch(path, json={field: None})
    assert (code(refused), refusal(refused)["param"]) == ((400, "invalid_request"), field)
    removed = (await server.client.patch(path, json={"expires_at": None, "limits": None})).json()
    assert (removed["expires_at"], removed["limits"]["rows"]) == (None, None)


async def test_a_change_of_what_another_admin_has_changed_is_refused(server: Server) -> None:
    key = await created(server)
    path, stale = f"/v1/keys/{key['id']}", {"If-Match": key["etag"]}
    first = await server.client.patch(path, json={"limits": {"rows": 5}}, headers=stale)
    assert (first.status_code, first.headers["etag"]) == (200, first.json()["etag"])
    for refused in (
        await server.client.patch(path, json={"limits": {"jobs": 7}}, headers=stale),
        await server.client.post(f"{path}/rotate", json={}, headers=stale),
        await server.client.delete(path, headers=stale),
    ):
        assert code(refused) == (412, "precondition_failed")
    again = {"If-Match": first.headers["etag"]}
    both = await server.client.patch(path, json={"limits": {"jobs": 7}}, headers=again)
    assert (both.json()["limits"]["rows"], both.json()["limits"]["jobs"]) == (5, 7)


async def test_the_use_of_a_key_does_not_change_its_etag(server: Server) -> None:
    key = await created(server)
    await ask(server, key)
    (listed,) = (await server.client.get("/v1/keys")).json()["data"]
    assert (listed["etag"], listed["last_used_at"] is None) == (key["etag"], False)


async def test_a_rotated_key_keeps_its_id_and_what_it_has_used(server: Server) -> None:
    key = await created(server, limits={"requests_per_minute": 3})
    assert (await ask(server, key)).status_code == 200
    path = f"/v1/keys/{key['id']}/rotate"
    second = (await server.client.post(path, json={"old_valid_seconds": 600})).json()
    assert (second["id"], second["limits"]) == (key["id"], key["limits"])
    assert second["previous_until"] is not None
    assert [(await ask(server, one)).status_code for one in (key, second, second)] == [200, 200, 429]
    await server.client.patch(f"/v1/keys/{key['id']}", json={"limits": {"requests_per_minute": None}})
    third = (await server.client.post(path, json={})).json()
    assert third["previous_until"] is None
    assert [(await ask(server, one)).status_code for one in (key, second, third)] == [401, 401, 200]
    secrets = str(await server.state.store.keys.all())
    assert not any(one["key"] in secrets for one in (key, second, third))


async def test_the_last_admin_key_stays_unless_it_is_forced_and_the_server_never_opens(start: StartServer) -> None:
    server = await start()
    admin = await created(server, name="admin", scopes=["admin"])
    server.client.headers.update(bearer(admin["key"]))
    path = f"/v1/keys/{admin['id']}"
    for refused in (
        await server.client.delete(path),
        await server.client.patch(path, json={"scopes": ["read"]}),
        await server.client.patch(path, json={"expires_at": "2020-01-01T00:00:00Z"}),
    ):
        assert code(refused) == (409, "last_admin_key")
        assert "?force=true" in refused.json()["error"]["message"]
    other = await created(server, name="other", scopes=["admin"])
    assert (await server.client.delete(path)).status_code == 204
    server.client.headers.update(bearer(other["key"]))
    assert (await server.client.delete(f"/v1/keys/{other['id']}?force=true")).status_code == 204
    del server.client.headers["authorization"]
    assert code(await server.client.get("/v1/audit")) == (401, "invalid_api_key")
    again = await start()  # as after a restart on the same database
    again.state.jobs.store = server.state.store
    await again.state.keys.refresh(server.state.store)
    assert code(await again.client.get("/v1/audit")) == (401, "invalid_api_key")


async def test_an_admin_key_of_the_environment_is_enough(server: Server) -> None:
    admin = await created(server, scopes=["admin"])
    assert (await server.client.delete(f"/v1/keys/{admin['id']}")).status_code == 204


async def test_the_scope_metrics_allows_nothing_else(server: Server) -> None:
    key = bearer((await created(server, scopes=["metrics"]))["key"])
    assert (await server.client.get("/metrics", headers=key)).status_code == 200
    for path in ("/v1/vectors", "/v1/keys", "/v1/capabilities", "/v1/policy"):
        assert code(await server.client.get(path, headers=key)) == (403, "insufficient_scope"), path


async def test_the_batch_of_a_deleted_key_stops(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server)
    job = await batch(server, key, *[LINE] * 400)
    assert (await server.client.delete(f"/v1/keys/{key['id']}")).status_code == 204
    gate.set()
    record = await ended(server, job)
    assert (record["status"], record["error"]["code"]) == ("failed", "invalid_api_key")
    assert record["progress"].get("done", 0) < 400


@pytest.mark.parametrize("change", [{"scopes": ["read"]}, {"namespace": "team-b"}, {"scopes": ["generate", "read"]}])
async def test_the_batch_of_a_key_that_lost_its_scope_or_namespace_stops(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, change: dict[str, Any]
) -> None:
    server = await start(tiny_engine(hf_byte_tokenizer), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, namespace="team-a")
    job = await batch(server, key, *[{"prompt": "a", "max_tokens": 16}] * 200)
    assert (await server.client.patch(f"/v1/keys/{key['id']}", json=change)).status_code == 200
    server.client.params = {"namespace": "team-a"}
    record = await ended(server, job)
    if "generate" in change.get("scopes", ()):  # all that it needs
        assert record["status"] == "succeeded"
    else:
        assert (record["status"], record["error"]["code"]) == ("failed", "invalid_api_key")
        assert record["progress"]["done"] < 200


async def test_the_jobs_of_a_deleted_key_are_cancelled_where_that_is_asked(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key, other = await created(server), await created(server)
    job, kept = await batch(server, key, LINE), await batch(server, other, LINE)
    assert (await server.client.delete(f"/v1/keys/{key['id']}?jobs=cancel")).status_code == 204
    assert (await ended(server, job))["status"] == "cancelled"
    gate.set()
    assert (await ended(server, kept))["status"] == "succeeded"


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_request_that_is_read_while_its_key_is_deleted_begins_no_job(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, elsewhere: bool
) -> None:
    shared = {"api_keys": ADMIN, "database": f"sqlite:///{tmp_path}/store.sqlite3"}
    server = await start(tiny_engine(hf_byte_tokenizer), **shared)
    other = await start(tiny_engine(hf_byte_tokenizer), **shared) if elsewhere else server
    for one in (server, other):
        one.client.headers.update(BEARER)
    key = await created(server, scopes=["write"])
    identified, deleted = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        identified.set()
        await deleted.wait()
        yield b'{"name": "mine", "concept": "sentiment", "layers": [1]}'

    headers = {**bearer(key["key"]), "content-type": "application/json"}
    asking = asyncio.create_task(server.client.post("/v1/vectors/extract", content=body(), headers=headers))
    await identified.wait()
    assert (await other.client.delete(f"/v1/keys/{key['id']}?jobs=cancel")).status_code == 204
    deleted.set()
    record = await ended(server, (await asking).json()["id"])
    assert (record["status"], record["error"]["code"]) == ("failed", "invalid_api_key")
    assert (await server.client.get("/v1/vectors")).json()["data"] == []


async def test_jobs_of_the_shared_namespace_are_their_keys(server: Server) -> None:
    mine = await created(server, scopes=["generate", "read", "write"])
    others = [
        await created(server, scopes=["read", "write"]),
        await created(server, scopes=["read"], namespace="team-b"),
    ]
    job = await batch(server, mine, LINE)
    await ended(server, job)
    for key in others:
        headers = bearer(key["key"])
        assert (await server.client.get("/v1/jobs", headers=headers)).json()["data"] == []
        for path in ("", "/output", "/events"):
            assert code(await server.client.get(f"/v1/jobs/{job}{path}", headers=headers)) == (404, "job_not_found")
    cancel = await server.client.delete(f"/v1/jobs/{job}", headers=bearer(others[0]["key"]))
    assert code(cancel) == (404, "job_not_found")
    for headers in (bearer(mine["key"]), BEARER):
        assert [one["id"] for one in (await server.client.get("/v1/jobs", headers=headers)).json()["data"]] == [job]
        assert (await server.client.get(f"/v1/jobs/{job}/output", headers=headers)).status_code == 200


async def test_what_jobs_return_counts_as_stored(server: Server) -> None:
    none = await created(server, limits={"storage_bytes": 0})
    headers = {**bearer(none["key"]), "content-type": "application/jsonl"}
    refused = await server.client.post("/v1/generate/batch", content=json.dumps(LINE), headers=headers)
    assert code(refused) == (507, "storage_full")
    refused = await server.client.post("/v1/score/batch", content=json.dumps(SCORE_ITEMS), headers=headers)
    assert code(refused) == (507, "storage_full")
    little = await created(server, limits={"storage_bytes": 2000})
    record = await ended(server, await batch(server, little, *[LINE] * 100))
    assert (record["status"], record["error"]["code"]) == ("failed", "storage_full")


async def test_results_of_a_batch_have_a_record_where_it_is_asked_for(server: Server) -> None:
    job = await batch(server, {"key": ADMIN}, LINE, {**LINE, "record": True})
    await ended(server, job)
    lines = [json.loads(line) for line in (await server.client.get(f"/v1/jobs/{job}/output")).text.splitlines()]
    assert ["record" in line["response"]["steering"] for line in lines] == [False, True]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/evaluations", DOSE),
        ("/v1/evaluations", {**CHOICES, "steering": []}),
        ("/v1/score", SCORE_ITEMS),
        ("/v1/evaluations", {"kind": "report", "vector": "mood", "steering": [{"vector": "mood"}], "max_tokens": 8}),
        ("/v1/vectors/extract", {"name": "x", "describe": {"trait": "kind", "opposite": "rude"}}),
        ("/v1/vectors/extract", {"name": "x", "concept": "sentiment"}),
        ("/tokenize", {"prompt": "one two three four five six"}),
    ],
)
async def test_jobs_and_tokenizing_count_tokens(server: Server, path: str, body: dict[str, Any]) -> None:
    key = await created(server, scopes=["generate", "write"], limits={"tokens_per_minute": 5})
    assert code(await server.client.post(path, json=body, headers=bearer(key["key"]))) == (429, "rate_limited")


async def test_a_list_of_the_policy_is_of_shared_vectors(server: Server) -> None:
    await server.register("mood")
    policy = {"limits": {"vectors": ["mood@1"]}}
    assert (await server.client.put("/v1/policy", json=policy)).status_code == 200
    own = bearer((await created(server, scopes=["generate", "write"], namespace="team-a"))["key"])

    async def steered(vector: str) -> int:
        body = {**LINE, "steering": [{"vector": vector}]}
        return (await server.client.post("/v1/generate", json=body, headers=own)).status_code

    assert [await steered(one) for one in ("mood@1", "mood@2", "mood")] == [200, 403, 403]
    mine = {"name": "mood", "directions": {"1": [1.0] * 8}}
    assert (await server.client.post("/v1/vectors", json=mine, headers=own)).status_code == 201
    assert await steered("mood@1") == 403, "a vector of the own namespace is not the one that was approved"


def test_no_minute_has_one_request_too_many() -> None:
    """With the clock as it is, and whenever the minute turns."""
    key = Key("key-a", frozenset({"generate"}), KeyLimitsFields(requests_per_minute=5))
    real = RateLimits()
    for _ in range(5):
        real.admit(key)
    with pytest.raises(RateLimited):
        real.admit(key)
    now = [59.9]
    limits = RateLimits(lambda: now[0])
    admitted: list[float] = []
    for step in range(3000):
        now[0] = 59.9 + step * 0.1
        try:
            limits.admit(key)
        except RateLimited:
            continue
        admitted.append(now[0])
    assert all(later - earlier > 60 for earlier, later in zip(admitted, admitted[5:], strict=False))
    assert len(admitted) >= 20, "what was used is free again after a minute"
