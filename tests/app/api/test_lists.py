"""Lists and suggestions read names, pages and summaries, never everything that is stored."""

import base64
from typing import Any

from sqlalchemy import select, update

from steering.spec import SteeringSpec, vector_names
from steering.store.records import JobRecord, write_steering
from steering.store.references import names_in_steering
from steering.store.store import Store
from steering.store.tables import ProfileRow, VectorRow
from tests.app.conftest import Server, StartServer
from tests.app.policy.test_keys import code
from tests.steering.store.test_listing_reads import statements

STEERING = [{"vector": "mood", "strength": 0.1}]


def store_of(server: Server) -> Store:
    """The store of a server."""
    store = server.state.store
    assert isinstance(store, Store)
    return store


async def put_profiles(server: Server, count: int) -> None:
    await server.register("mood")
    for number in range(count):
        body = {"interventions": STEERING, "description": f"number {number}"}
        assert (await server.client.put(f"/v1/profiles/p{number}", json=body)).status_code == 200


async def test_profiles_are_listed_in_pages(server: Server) -> None:
    await put_profiles(server, 5)
    client = server.client
    first = (await client.get("/v1/profiles?limit=2")).json()
    assert [one["name"] for one in first["data"]] == ["p0", "p1"]
    assert set(first) == {"data", "next_cursor", "warnings"}
    rest = (await client.get("/v1/profiles", params={"cursor": first["next_cursor"], "limit": 3})).json()
    assert ([one["name"] for one in rest["data"]], rest["next_cursor"]) == (["p2", "p3", "p4"], None)
    assert rest["data"][0]["interventions"] == STEERING, "as they were written"
    assert code(await client.get("/v1/profiles?limit=201"))[0] == 400


async def test_a_page_has_as_many_entries_as_the_operator_allows(start: StartServer) -> None:
    server = await start(max_page=2)
    await put_profiles(server, 3)
    for name in ("a", "b"):
        await server.register(name)
    assert len((await server.client.get("/v1/profiles")).json()["data"]) == 2
    for path in ("/v1/vectors", "/v1/vectors/mood/versions", "/v1/jobs", "/v1/links", "/v1/audit"):
        whole = await server.client.get(path)
        assert (whole.status_code, len(whole.json()["data"]) <= 2) == (200, True), path
        assert code(await server.client.get(path, params={"limit": 3})) == (400, "limit_exceeded")


async def test_a_cursor_with_a_control_character_is_no_cursor(server: Server) -> None:
    cursor = base64.urlsafe_b64encode(b"vector:a\0").decode()
    assert code(await server.client.get("/v1/vectors", params={"cursor": cursor})) == (400, "invalid_request")


async def test_the_number_of_profiles_is_limited_and_shown(start: StartServer) -> None:
    server = await start(max_profiles=2)
    await put_profiles(server, 2)
    refused = await server.client.put("/v1/profiles/third", json={"interventions": STEERING})
    assert code(refused) == (507, "storage_full")
    assert refused.json()["error"]["param"] == "max_profiles"
    assert (await server.client.get("/v1/capabilities")).json()["limits"]["max_profiles"] == 2


async def test_profiles_count_in_the_bytes_of_a_key(start: StartServer) -> None:
    server = await start(api_keys="sk-admin-0123456789abcdef")
    server.client.headers["authorization"] = "Bearer sk-admin-0123456789abcdef"
    await server.register("mood")
    body = {"name": "small", "scopes": ["read", "write"], "limits": {"storage_bytes": 1}}
    small = (await server.client.post("/v1/keys", json=body)).json()["key"]
    headers = {"authorization": f"Bearer {small}"}
    refused = await server.client.put("/v1/profiles/calm", json={"interventions": STEERING}, headers=headers)
    assert code(refused) == (507, "storage_full")


async def test_suggestions_and_models_read_names_alone(server: Server) -> None:
    await put_profiles(server, 2)
    store = store_of(server)
    with statements(store) as seen:
        unknown = await server.client.post(
            "/v1/generate", json={"prompt": "a", "steering": {"profile": "p"}, "max_tokens": 1}
        )
        models = (await server.client.get("/v1/models")).json()["data"]
        vector = await server.client.get("/v1/vectors/moot")
        versions = await server.client.get("/v1/vectors/moot/versions")
        deleted = await server.client.delete("/v1/vectors/moot")
    assert [code(one)[0] for one in (unknown, vector, versions, deleted)] == [404] * 4
    assert all("did you mean 'mood'" in one.json()["error"]["message"] for one in (vector, versions, deleted))
    assert "did you mean" in unknown.json()["error"]["message"]
    assert [one.get("description") for one in models] == [None, "number 0", "number 1"]
    lists = [one for one in seen if ("LIMIT" in one and "DISTINCT" in one) or "profiles.description" in one]
    assert lists
    assert [one for one in lists if "steering" in one and "profiles.name =" not in one] == []
    assert [one for one in seen if "metadata_json" in one.replace("length(vectors.metadata_json)", "")] == []


async def test_an_unknown_vector_is_no_work_on_what_is_stored_of_others(server: Server) -> None:
    """200 vectors with damaged metadata would take a log line each if it were read."""
    await server.register("mood")
    await store_of(server).database.change(update(VectorRow).values(metadata_json="{" * 60_000))
    answer = await server.client.get("/v1/vectors/moot")
    assert "did you mean 'mood'" in answer.json()["error"]["message"]


async def test_a_delete_does_not_read_the_profiles(server: Server) -> None:
    await put_profiles(server, 3)
    await server.register("other")
    store = store_of(server)
    await store.database.change(
        update(ProfileRow).where(ProfileRow.name == "p0").values(steering='{"vector":"mood", damaged')
    )
    with statements(store) as seen:
        assert (await server.client.delete("/v1/vectors/other")).status_code == 204, (
            "a damaged profile that does not name it"
        )
        refused = await server.client.delete("/v1/vectors/mood")
    assert code(refused) == (409, "vector_in_use")
    assert "profile 'p0', profile 'p1', profile 'p2'" in refused.json()["error"]["message"]
    selected = [one.partition("FROM")[0] for one in seen if "FROM profiles" in one]
    assert selected
    assert [one for one in selected if "steering" in one] == [], "the database compares, nothing is parsed"


def test_every_field_that_names_a_vector_is_looked_for() -> None:
    spec = SteeringSpec.model_validate({"interventions": [
        {"vector": "a@3", "strength": 1.0, "when": {"any": [{"vector": "b", "above": 0.0}, {"not": {"vector": "c@1", "above": 0}}]}},
        {"vector": "d", "operation": "replace", "to": "e@2"},
        {"vector": "f", "strength_from": {"vector": "g@3", "bias": 0.5}},
    ]})  # fmt: skip
    text = write_steering(spec)
    named = [one.partition("@") for one in vector_names(spec)]
    assert len(named) == 7
    for name, _, version in named:
        pinned = int(version) if version else None
        assert any(one in text for one in names_in_steering(name, None, only=True))
        assert any(one in text for one in names_in_steering(name, pinned or 1, only=True))
        assert not any(one in text for one in names_in_steering(name, 9, only=False))
    assert not any(one in text for one in names_in_steering("operation", None, only=True))


async def test_a_page_of_large_cards_is_shorter(server: Server) -> None:
    await server.register("mood")
    store = store_of(server)

    async def grow(name: str) -> None:
        await server.register(name)
        row = (await store.database.rows(select(VectorRow.metadata_json).where(VectorRow.name == name)))[0]
        large = row.metadata_json.replace('"provenance":{', '"provenance":{"note":"' + "x" * 3_000_000 + '",', 1)
        large = large.replace('",}', '"}', 1)
        await store.database.change(update(VectorRow).where(VectorRow.name == name).values(metadata_json=large))

    for name in ("large-a", "large-b"):
        await grow(name)
    first = (await server.client.get("/v1/vectors")).json()
    assert [one["name"] for one in first["data"]] == ["large-a"]
    rest = (await server.client.get("/v1/vectors", params={"cursor": first["next_cursor"]})).json()
    assert [one["name"] for one in rest["data"]] == ["large-b", "mood"]


async def test_a_list_of_jobs_reads_no_results(server: Server) -> None:
    store = store_of(server)
    result: dict[str, Any] = {"points": [{"x": number / 3} for number in range(2000)]}
    for number in range(3):
        await store.shared.jobs.put(JobRecord(id=f"job-{number}", kind="evaluate", status="succeeded", result=result))
    with statements(store) as seen:
        page = (await server.client.get("/v1/jobs?limit=2")).json()
    assert len(page["data"]) == 2
    listed = [one for one in seen if "FROM jobs" in one and "jobs.position" in one]
    assert listed
    assert not any("jobs.result" in one or "jobs.request" in one for one in listed)
    assert (await server.client.get("/v1/jobs/job-0")).json()["result"] == result
