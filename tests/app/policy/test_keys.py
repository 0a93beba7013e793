"""Keys over HTTP: created, changed, limited, rotated and deleted without a restart."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.core.admission import RateLimits
from app.core.settings import Settings
from tests.app.conftest import Server, StartServer, refusal
from tests.fakes import ScriptedEngine

ADMIN = "sk-admin-key-of-tests-0123456789"
BEARER = {"authorization": f"Bearer {ADMIN}"}
ASK = {"prompt": "a", "max_tokens": 2}


@pytest.fixture
async def server(start: StartServer) -> Server:
    """A server with one key of the environment, and a vector."""
    one = await start(api_keys=ADMIN)
    one.client.headers.update(BEARER)
    await one.register("mood")
    return one


def bearer(key: str) -> dict[str, str]:
    """Returns the header of a key."""
    return {"authorization": f"Bearer {key}"}


async def created(server: Server, **fields: Any) -> dict[str, Any]:
    """Creates a key."""
    answer = await server.client.post("/v1/keys", json={"name": "team", "scopes": ["generate"], **fields})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ask(server: Server, key: dict[str, Any], **changes: Any) -> httpx2.Response:
    """Generates with a key."""
    return await server.client.post("/v1/generate", json={**ASK, **changes}, headers=bearer(key["key"]))


def code(answer: httpx2.Response) -> tuple[int, str]:
    """Returns status and code of a refusal."""
    return answer.status_code, refusal(answer)["code"]


async def test_a_key_works_at_once_and_is_shown_once(server: Server) -> None:
    key = await created(server, scopes=["generate", "read"])
    assert (await ask(server, key)).status_code == 200
    (listed,) = (await server.client.get("/v1/keys")).json()["data"]
    assert "key" not in listed
    assert listed["last_used_at"] is not None
    assert key["key"] not in str(await server.state.store.keys.all())
    assert code(await server.client.get("/metrics", headers=bearer(key["key"]))) == (403, "insufficient_scope")
    assert code(await server.client.get("/v1/keys", headers=bearer(key["key"]))) == (403, "insufficient_scope")


async def test_a_key_is_not_made_expired(start: StartServer) -> None:
    """The first one would shut everybody out: a server that has had a key asks for one."""
    server = await start()
    body = {"name": "first", "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z"}
    refused = await server.client.post("/v1/keys", json=body)
    assert (code(refused), refused.json()["error"]["param"]) == ((400, "invalid_request"), "expires_at")
    assert (await server.client.get("/v1/keys")).status_code == 200


async def test_a_key_is_changed_and_deleted_without_a_restart(server: Server) -> None:
    key = await created(server)
    assert (await server.client.get("/v1/vectors", headers=bearer(key["key"]))).status_code == 403
    changed = await server.client.patch(f"/v1/keys/{key['id']}", json={"scopes": ["read"], "name": "other"})
    assert (changed.json()["name"], changed.json()["scopes"]) == ("other", ["read"])
    assert (await server.client.get("/v1/vectors", headers=bearer(key["key"]))).status_code == 200
    assert (await ask(server, key)).status_code == 403
    assert (await server.client.delete(f"/v1/keys/{key['id']}")).status_code == 204
    assert code(await ask(server, key)) == (401, "invalid_api_key")
    assert code(await server.client.delete(f"/v1/keys/{key['id']}")) == (404, "key_not_found")
    assert code(await server.client.patch("/v1/keys/nobody", json={})) == (404, "key_not_found")


async def test_an_expired_key_is_unknown(server: Server) -> None:
    key, past = await created(server), {"expires_at": "2020-01-01T00:00:00Z"}
    await server.client.patch(f"/v1/keys/{key['id']}", json=past)
    assert code(await ask(server, key)) == (401, "invalid_api_key")
    await server.client.patch(f"/v1/keys/{key['id']}", json={"expires_at": None})
    assert (await ask(server, key)).status_code == 200
    assert (
        await server.client.post(
            "/v1/keys", json={"name": "x", "scopes": ["read"], "expires_at": "2030-01-01T00:00:00"}
        )
    ).status_code == 400


@pytest.mark.parametrize(
    "moment", ["9999-12-31T23:59:59-10:00", "0001-01-01T00:00:00+10:00", -1.1, 4102444800, "4102444800"]
)
async def test_a_time_that_utc_cannot_tell_or_a_number_is_refused(server: Server, moment: str | float) -> None:
    key = await created(server)
    body = {"name": "x", "scopes": ["read"], "expires_at": moment}
    for refused in (
        await server.client.post("/v1/keys", json=body),
        await server.client.patch(f"/v1/keys/{key['id']}", json={"expires_at": moment}),
    ):
        assert code(refused) == (400, "invalid_request")
        assert refused.json()["error"]["param"] == "expires_at"


@pytest.mark.parametrize("name", ["mood@x", "Mood", "", "mood/1"])
async def test_a_limit_names_vectors_that_can_exist(server: Server, name: str) -> None:
    key, limits = await created(server), {"vectors": ["mood", name]}
    for refused in (
        await server.client.post("/v1/keys", json={"name": "x", "scopes": ["read"], "limits": limits}),
        await server.client.patch(f"/v1/keys/{key['id']}", json={"limits": limits}),
    ):
        assert code(refused) == (400, "invalid_request")
        assert refused.json()["error"]["param"] == "limits.vectors"


async def test_the_first_key_of_a_server_without_keys_is_an_admins(start: StartServer) -> None:
    server = await start()
    refused = await server.client.post("/v1/keys", json={"name": "x", "scopes": ["read"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "scopes")
    key = await created(server, scopes=["admin"])
    assert (await server.client.get("/v1/vectors")).status_code == 401
    assert (await ask(server, key)).status_code == 200, "admin includes every scope"


async def test_requests_tokens_and_concurrency_of_a_key_are_limited(server: Server) -> None:
    server.state.rate_limits = RateLimits()
    few = await created(server, limits={"requests_per_minute": 2})
    assert [(await ask(server, few)).status_code for _ in range(3)] == [200, 200, 429]
    refused = await ask(server, few)
    assert code(refused) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    small = await created(server, limits={"tokens_per_minute": 10})
    assert (await ask(server, small, max_tokens=5)).status_code == 200
    assert code(await ask(server, small, max_tokens=5)) == (429, "rate_limited")
    assert code(await ask(server, small, max_tokens=50)) == (429, "rate_limited")
    assert (await server.client.post("/v1/generate", json=ASK)).status_code == 200, "other keys are not affected"


async def test_concurrent_requests_of_a_key_are_limited(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"concurrency": 1})
    first = asyncio.create_task(ask(server, key))
    while server.engine.stats().running == 0:  # noqa: ASYNC110 - counted by the engine
        await asyncio.sleep(0.01)
    assert code(await ask(server, key)) == (429, "rate_limited")
    gate.set()
    assert (await first).status_code == 200
    assert (await ask(server, key)).status_code == 200


async def test_what_a_key_may_steer_with_holds_on_every_route(server: Server) -> None:
    await server.register("other")
    await server.client.put("/v1/profiles/cheerful", json={"interventions": [{"vector": "mood"}]})
    own, profile = [{"vector": "mood"}], {"profile": "cheerful"}
    profiles = await created(server, limits={"own_steering": "profiles"})
    none = await created(server, limits={"own_steering": "none"})
    vectors = await created(server, limits={"vectors": ["mood"]})
    for key, steering, status in (
        (profiles, profile, 200), (profiles, own, 403), (profiles, [], 200), (profiles, {**profile, "interventions": own}, 403),
        (none, profile, 403), (none, own, 403), (none, [], 200),
        (vectors, own, 200), (vectors, [{"vector": "other"}], 403), (vectors, [{"vector": "other@1"}], 403),
    ):  # fmt: skip
        assert (await ask(server, key, steering=steering)).status_code == status, (key["limits"], steering)
    record = (await server.client.post("/v1/generate", json={**ASK, "steering": own})).json()["steering"]["record"]
    for path, body in (
        ("/v1/replay", record),
        ("/v1/compare", {**ASK, "steering": own}),
        (
            "/v1/chat/completions",
            {"model": "scripted", "messages": [{"role": "user", "content": "a"}], "steering": own},
        ),
    ):
        answer = await server.client.post(path, json=body, headers=bearer(profiles["key"]))
        assert code(answer) == (403, "insufficient_scope"), path


async def test_the_dose_of_a_key_is_bounded(server: Server) -> None:
    key = await created(server, limits={"max_relative_dose": 0.01})
    refused = await ask(server, key, steering=[{"vector": "mood", "strength": 5.0}])
    assert code(refused) == (400, "dose_exceeded")
    assert (await ask(server, key, steering=[])).status_code == 200


async def test_changes_are_in_the_audit_log(server: Server) -> None:
    key = await created(server, name="auditor", scopes=["write"])
    await server.client.put(
        "/v1/profiles/cheerful", json={"interventions": [{"vector": "mood"}]},
        headers={**bearer(key["key"]), "x-request-id": "change-1"},
    )  # fmt: skip
    await server.client.post("/v1/generate", json=ASK)
    await server.client.put("/v1/profiles/bad", json={"interventions": []})
    entries = (await server.client.get("/v1/audit")).json()["data"]
    assert [(one["action"], one["target"]) for one in entries] == [
        ("PUT /v1/profiles/{name}", "name=cheerful"),
        ("POST /v1/keys", "name=auditor"),
        ("POST /v1/vectors", "name=mood"),
    ]
    assert (entries[0]["key"], entries[0]["request_id"]) == (key["id"], "change-1")
    assert key["key"] not in str(entries)
    first = (await server.client.get("/v1/audit?limit=1")).json()
    following = (await server.client.get(f"/v1/audit?limit=1&cursor={first['next_cursor']}")).json()
    assert following["data"] == entries[1:2]
    assert code(await server.client.get("/v1/audit", headers=bearer(key["key"]))) == (403, "insufficient_scope")


async def test_the_audit_log_says_which_version_and_whose_things_were_changed(server: Server) -> None:
    """An import has its name in the query, a delete its version, and a change for another namespace the namespace."""
    content = (await server.client.get("/v1/vectors/mood/export")).content
    for query in ("?name=copy&namespace=team-b", ""):
        stored = await server.client.post(
            f"/v1/vectors/import{query}", content=content, headers={"content-type": "application/octet-stream"}
        )
        assert stored.status_code == 201
    assert (await server.client.delete("/v1/vectors/mood?version=1")).status_code == 204
    assert (await server.client.put("/v1/steering?namespace=team-b", json={"interventions": []})).status_code == 200
    entries = (await server.client.get("/v1/audit?limit=4")).json()["data"]
    assert [(one["action"], one["target"]) for one in entries] == [
        ("PUT /v1/steering", "namespace=team-b"),
        ("DELETE /v1/vectors/{name}", "name=mood, version=1"),
        ("POST /v1/vectors/import", "name=mood"),
        ("POST /v1/vectors/import", "name=copy, namespace=team-b"),
    ]


async def test_keys_of_a_file_are_read_again(start: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the team\nsk-first-key-0123456789:read\n")
    server = await start(api_keys_file=file)
    assert (await server.client.get("/v1/vectors", headers=bearer("sk-first-key-0123456789"))).status_code == 200
    file.write_text("sk-second-key-0123456789:read\n")
    await server.state.keys.refresh(server.state.store)
    assert (await server.client.get("/v1/vectors", headers=bearer("sk-first-key-0123456789"))).status_code == 401
    assert (await server.client.get("/v1/vectors", headers=bearer("sk-second-key-0123456789"))).status_code == 200
    file.write_text("short\n")
    await server.state.keys.refresh(server.state.store)
    assert (await server.client.get("/v1/vectors", headers=bearer("sk-second-key-0123456789"))).status_code == 200


@pytest.mark.parametrize(
    "entry", ["sk-a-key-0123456789:", "sk-a-key-0123456789:+", "sk-a-key-0123456789:read+", "sk-a-key-0123456789:root"]
)
def test_a_key_without_scopes_after_its_colon_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="unknown scopes"):
        Settings(api_keys=entry)
