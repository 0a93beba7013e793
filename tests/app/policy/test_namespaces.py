"""Two keys of two namespaces: neither sees, names nor changes what belongs to the other, on any route of the API."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.api.keys import digest_of
from steering.store.database import Writer
from steering.store.records import JobRecord
from tests.app.conftest import Server, StartServer
from tests.app.document import DOCUMENT
from tests.app.policy.namespaced_routes import (
    ADMINS,
    ELSEWHERE,
    LISTED,
    NAMED,
    NAMELESS,
    NEAR,
    NUMBERS,
    OWN,
    SHORT,
    UNKNOWN,
    WRITTEN,
    Case,
    filled,
)

ADMIN, ALPHA, BETA = "sk-admin-key-0123456789", "sk-alpha-key-0123456789", "sk-beta-key-0123456789"
KEYS = f"{ADMIN},{ALPHA}:generate+read+write@alpha,{BETA}:generate+read+write@beta"


@pytest.fixture
async def server(start: StartServer) -> Server:
    """A server on which `alpha` has a vector, a profile, a default steering, a job and a link; `common` is shared."""
    one = await start(api_keys=KEYS)
    one.client.headers.update(bearer(ADMIN))
    await one.register("common")
    one.client.headers.update(bearer(ALPHA))
    await one.register("alpha-secret", description="alpha words", tags=["alpha-tag"])
    await one.register("alpha-secret", layers=(1,))
    used = {"interventions": [{"vector": "alpha-secret"}, {"vector": "common"}]}
    assert (await one.client.put("/v1/profiles/alpha-profile", json=used)).status_code == 200
    assert (await one.client.put("/v1/steering", json=used)).status_code == 200
    job = JobRecord(
        id="job-alpha",
        kind="extract",
        status="succeeded",
        request={"name": "alpha-secret"},
        result={"v": "alpha-secret"},
    )
    await one.state.store.in_namespace("alpha").jobs.put(job)
    writer = Writer(f"key-{digest_of(ALPHA)[:8]}")
    await one.state.store.in_namespace("alpha", writer).links.put(OWN["link"], "compare", {"prompt": "alpha"})
    return one


def bearer(key: str) -> dict[str, str]:
    """Returns the header of a key."""
    return {"authorization": f"Bearer {key}"}


async def send(server: Server, case: Case, names: Mapping[str, str], key: str = BETA) -> httpx2.Response:
    """Sends the request of a case."""
    method, path = case.route.split()
    kind = next((kind for kind in ("profile", "job", "model") if f"/v1/{kind}s/" in path), "vector")
    for placeholder, name in (("name", kind), ("job_id", "job"), ("link_id", "link"), ("model", "model")):
        path = path.replace(f"{{{placeholder}}}", names[name])
    content, headers = None, bearer(key)
    if case.file:
        content = (await server.client.get("/v1/vectors/common/export", headers=headers)).content
        headers["content-type"] = "application/octet-stream"
    body = None if case.body is None else filled(case.body, names)
    if case.lines:
        content, body = json.dumps(body).encode(), None
        headers["content-type"] = "application/jsonl"
    query = {name: str(value).lower() if isinstance(value, bool) else value for name, value in case.query.items()}
    return await server.client.request(
        method, path, params=filled(query, names), json=body, content=content, headers=headers
    )


async def snapshot(server: Server, key: str) -> list[Any]:
    """Returns everything that a key sees."""
    names = ("vectors", "profiles", "jobs", "links", "models", "steering", "vectors/alpha-secret/versions")
    found: list[Any] = [(await server.client.get(f"/v1/{name}", headers=bearer(key))).json() for name in names]
    return [*found, (await server.client.get("/v1/vectors/alpha-secret/export", headers=bearer(key))).content]


@cache
def routes() -> frozenset[str]:
    """Returns every route of the OpenAPI document."""
    return frozenset(f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods)


def test_every_route_has_a_case() -> None:
    covered = {case.route for case in (*NAMED, *LISTED, *WRITTEN)} | ADMINS | NAMELESS | set(ELSEWHERE)
    assert routes() - covered == set(), "say in namespaced_routes.py what another namespace gets there"


def test_every_route_that_looks_up_names_takes_a_namespace() -> None:
    for case in (*NAMED, *WRITTEN):
        method, path = case.route.split()
        parameters = DOCUMENT["paths"][path][method.lower()].get("parameters", ())
        assert "namespace" in {one["name"] for one in parameters}, case.route


async def test_a_name_of_another_namespace_is_as_good_as_none(server: Server) -> None:
    before = await snapshot(server, ALPHA)
    for case in NAMED:
        answers = [await unnamed_answer(server, case, names) for names in (OWN, NEAR, UNKNOWN)]
        assert [status for status, _, _ in answers] == [case.status] * 3, (case, answers)
        assert "alpha" not in str(answers), case
        assert answers == [answers[0]] * 3, case
    assert await snapshot(server, ALPHA) == before


async def unnamed_answer(server: Server, case: Case, names: Mapping[str, str]) -> tuple[int, str, dict[str, str]]:
    """Returns status, body and headers of an answer, without the names that were sent."""
    answer = await send(server, case, names)
    text = answer.text
    for name in names.values():
        text = text.replace(name, "NAME")
    return answer.status_code, text, {**answer.headers, "x-request-id": "", "content-length": ""}


async def test_nothing_of_another_namespace_is_listed_or_used(server: Server) -> None:
    for case in LISTED:
        if case.route in routes():
            answer = await send(server, case, OWN)
            assert answer.status_code == case.status, (case, answer.text)
            assert "alpha" not in answer.text, case


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.route)
async def test_the_same_name_may_be_used_in_both(server: Server, case: Case) -> None:
    before = await snapshot(server, ALPHA)
    answer = await send(server, case, OWN)
    assert answer.status_code == case.status, answer.text
    if answer.content:
        assert (answer.json()["namespace"], answer.json().get("version", 1)) == ("beta", 1)
    assert await snapshot(server, ALPHA) == before


async def test_routes_of_operators_are_closed_to_both(server: Server) -> None:
    for route in ADMINS & routes():
        method, path = route.split()
        answer = await server.client.request(method, path.replace("{key_id}", "key_1"), headers=bearer(BETA))
        assert answer.status_code == 403, route


async def test_a_record_of_another_namespace_is_not_replayed(server: Server) -> None:
    steering = [{"vector": "alpha-secret"}]
    made = await server.client.post("/v1/generate", json={**SHORT, "steering": steering}, headers=bearer(ALPHA))
    record = made.json()["steering"]["record"]
    assert (await server.client.post("/v1/replay", json=record, headers=bearer(ALPHA))).status_code == 200
    refused = await server.client.post("/v1/replay", json=record, headers=bearer(BETA))
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "vector_not_found")


async def test_other_namespaces_are_named_by_admins_only(server: Server) -> None:
    for name in ("vectors", "vectors/alpha-secret", "profiles", "jobs", "links", "models", "steering"):
        path = f"/v1/{name}"
        for namespace in ("alpha", "shared", "nobody"):
            refused = await server.client.get(path, params={"namespace": namespace}, headers=bearer(BETA))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
        own = await server.client.get(path, params={"namespace": "alpha"}, headers=bearer(ALPHA))
        admins = await server.client.get(path, params={"namespace": "alpha"}, headers=bearer(ADMIN))
        assert (own.status_code, own.json()) == (200, admins.json())
    bad = await server.client.get("/v1/vectors", params={"namespace": "../alpha"}, headers=bearer(ADMIN))
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "namespace")
    for case in (*WRITTEN, *LISTED, *NAMED):  # each takes the parameter; what it does with it is tested above
        if case.route in routes() - {"GET /v1/capabilities", "GET /v1/concepts"}:
            elsewhere = replace(case, query={**case.query, "namespace": "x"})
            answer = await send(server, elsewhere, UNKNOWN)
            assert answer.status_code == 403, case.route


async def test_shared_things_are_seen_and_changed_by_their_own_keys_only(server: Server) -> None:
    client = server.client
    await client.put("/v1/profiles/ours", json={"interventions": [{"vector": "common"}]}, headers=bearer(ADMIN))
    await server.state.store.shared.jobs.put(JobRecord(id="job-shared", kind="extract", status="running"))
    assert [one["name"] for one in (await snapshot(server, BETA))[0]["data"]] == ["common"]
    for method, path, body in (
        ("DELETE", "/v1/vectors/common", None),
        ("PATCH", "/v1/vectors/common", {"description": "mine"}),
        ("DELETE", "/v1/profiles/ours", None),
    ):
        refused = await client.request(method, path, json=body, headers=bearer(BETA))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope"), path
        assert "belongs to namespace 'shared'" in refused.json()["error"]["message"]
    for method in ("GET", "DELETE"):
        unseen = await client.request(method, "/v1/jobs/job-shared", headers=bearer(BETA))
        assert (unseen.status_code, unseen.json()["error"]["code"]) == (404, "job_not_found")


async def test_a_shared_vector_in_use_elsewhere_is_kept_without_saying_where(server: Server) -> None:
    refused = await server.client.delete("/v1/vectors/common", headers=bearer(ADMIN))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "vector_in_use")
    assert ("another namespace" in refused.text, "alpha" in refused.text) == (True, False)


async def test_an_own_vector_hides_the_shared_one(server: Server) -> None:
    hiding = {"name": "common", "directions": {"2": [0.0] * 7 + [1.0]}}
    answer = await server.client.post("/v1/vectors", json=hiding, headers=bearer(BETA))
    assert (answer.json()["namespace"], answer.json()["version"]) == ("beta", 1)
    path = "/v1/vectors/common"
    seen, others = [(await server.client.get(path, headers=bearer(key))).json() for key in (BETA, ALPHA)]
    assert (seen["namespace"], seen["layers"], others["namespace"]) == ("beta", [2], "shared")
    listed = await server.client.get("/v1/vectors", headers=bearer(BETA))
    assert [(one["namespace"], one["name"]) for one in listed.json()["data"]] == [("beta", "common")]
    for key, namespace in ((BETA, "beta"), (ALPHA, "shared")):
        steered = {**SHORT, "steering": [{"vector": "common"}]}
        answer = await server.client.post("/v1/generate", json=steered, headers=bearer(key))
        versions = await server.client.get("/v1/vectors/common/versions", headers=bearer(key))
        assert [one["namespace"] for one in answer.json()["steering"]["applied"]] == [namespace]
        assert [one["namespace"] for one in versions.json()["data"]] == [namespace]


async def test_a_shared_profile_means_shared_vectors(server: Server) -> None:
    client, theirs = server.client, {"interventions": [{"vector": "common"}]}
    await client.put("/v1/profiles/ours", json=theirs, headers=bearer(ADMIN))
    await client.put("/v1/steering", json=theirs, headers=bearer(ADMIN))
    ask = {**SHORT, "steering": {"profile": "ours"}}
    before = (await client.post("/v1/generate", json=ask, headers=bearer(BETA))).json()
    plain = (await client.post("/v1/generate", json=SHORT, headers=bearer(BETA))).json()
    await client.post("/v1/vectors", json={"name": "common", "directions": {"2": NUMBERS["1"]}}, headers=bearer(BETA))
    after = (await client.post("/v1/generate", json=ask, headers=bearer(BETA))).json()
    assert after["steering"]["fingerprint"] == before["steering"]["fingerprint"] != ""
    still = (await client.post("/v1/generate", json=SHORT, headers=bearer(BETA))).json()
    assert still["steering"]["fingerprint"] == plain["steering"]["fingerprint"] != ""
    assert (await client.post("/v1/replay", json=after["steering"]["record"], headers=bearer(BETA))).status_code == 200
    both = {**SHORT, "steering": {"profile": "ours", "interventions": [{"vector": "common"}]}}
    refused = await client.post("/v1/generate", json=both, headers=bearer(BETA))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "steering")


async def test_a_shared_vector_is_replayed_where_an_own_one_lacks_its_version(server: Server) -> None:
    client = server.client
    client.headers.update(bearer(ADMIN))
    await server.register("common", layers=(1,))
    await client.put("/v1/profiles/ours", json={"interventions": [{"vector": "common@2"}]})
    client.headers.update(bearer(BETA))
    await server.register("common", layers=(2,))
    answer = (await client.post("/v1/generate", json={**SHORT, "steering": {"profile": "ours"}})).json()
    assert list(answer["steering"]["record"]["vectors"]) == ["common@2"]
    replay = await client.post("/v1/replay", json=answer["steering"]["record"])
    assert replay.status_code == 200, replay.text
    assert replay.json()["choices"][0]["text"] == answer["choices"][0]["text"]
    assert replay.json()["steering"]["fingerprint"] == answer["steering"]["fingerprint"]


async def test_each_namespace_has_a_default_steering_and_else_the_shared_one(server: Server) -> None:
    client = server.client

    async def applied(key: str) -> list[str]:
        answer = await client.post("/v1/generate", json=SHORT, headers=bearer(key))
        return [one["vector"] for one in answer.json()["steering"]["applied"]]

    assert (await applied(ALPHA), await applied(BETA)) == (["alpha-secret@2", "common@1"], [])
    await client.put("/v1/steering", json={"interventions": [{"vector": "common"}]}, headers=bearer(ADMIN))
    assert (await applied(ALPHA), await applied(BETA)) == (["alpha-secret@2", "common@1"], ["common@1"])
    await client.put("/v1/steering", json={"interventions": []}, headers=bearer(BETA))
    assert await applied(BETA) == []
    assert (await client.delete("/v1/steering", headers=bearer(BETA))).status_code == 204
    assert await applied(BETA) == ["common@1"]
    read = (await client.get("/v1/steering", headers=bearer(BETA))).json()
    assert (read["namespace"], read["interventions"][0]["vector"]) == ("shared", "common@1")


async def test_a_default_keeps_the_shared_vector_that_it_pins(start: StartServer, tmp_path: Path) -> None:
    """Also on another server, once the namespace has an own vector of that name."""
    common: dict[str, Any] = {"api_keys": KEYS, "database": f"sqlite:///{tmp_path}/store"}
    one = await start(**common)
    one.client.headers.update(bearer(ADMIN))
    shared = await one.register("mood")
    one.client.headers.update(bearer(ALPHA))
    assert (await one.client.put("/v1/steering", json={"interventions": [{"vector": "mood"}]})).status_code == 200
    own = await one.register("mood", layers=(1,))
    assert (own["namespace"], own["version"]) == ("alpha", 2)
    for server in (one, await start(**common)):
        answer = await server.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 1}, headers=bearer(ALPHA))
        assert answer.json()["steering"]["record"]["vectors"] == {"mood@1": shared["sha256"]}
