"""Saved links: whoever has the id reads the state; the keys of its namespace list and delete it, in `shared` the key that saved it."""

from typing import Any

import httpx2
import pytest

from tests.app.conftest import Server, StartServer
from tests.app.policy.test_namespaces import ADMIN, ALPHA, BETA, KEYS, bearer

OTHER, READER = "sk-other-key-0123456789", "sk-reads-key-0123456789"
FIRST, SECOND = "sk-first-key-0123456789", "sk-second-key-012345678"
STATE = {"prompt": "How are you?", "controls": [{"vector": "alpha-secret", "strength": -0.5}]}
COMPARE = {"view": "compare", "state": STATE}


@pytest.fixture
async def keyed(start: StartServer) -> Server:
    """A server with two keys in the namespace `alpha`, one in `beta`, two and one that only reads in `shared`, and an admin."""
    others = f"{OTHER}:read+write@alpha,{READER}:read,{FIRST}:read+write,{SECOND}:read+write"
    return await start(api_keys=f"{KEYS},{others}", max_links=2, max_link_bytes=200)


async def saved(server: Server, key: str, **fields: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/links", json={**COMPARE, **fields}, headers=bearer(key))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ids(server: Server, key: str, **query: Any) -> list[str]:
    answer = await server.client.get("/v1/links", params=query, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["data"]]


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_saved_state_is_read_by_every_key_that_has_the_id(keyed: Server) -> None:
    link = await saved(keyed, ALPHA)
    assert link["url"] == f"/#/compare?link={link['id']}"
    assert (link["namespace"], len(link["id"])) == ("alpha", 16)
    for key in (ALPHA, BETA, READER, ADMIN):
        answer = await keyed.client.get(f"/v1/links/{link['id']}", headers=bearer(key))
        assert answer.json() == {
            "id": link["id"],
            "view": "compare",
            "url": link["url"],
            "state": STATE,
            "created_at": link["created_at"],
        }
    assert (await saved(keyed, ALPHA))["id"] != link["id"]


async def test_links_are_listed_and_deleted_by_the_keys_of_their_namespace_and_by_admins(keyed: Server) -> None:
    """As with a key that replaces another: OTHER has what ALPHA saved, and the other way round."""
    others, mine = (await saved(keyed, OTHER, view="read"))["id"], (await saved(keyed, ALPHA))["id"]
    assert (await ids(keyed, ALPHA), await ids(keyed, OTHER), await ids(keyed, BETA)) == (
        [mine, others],
        [mine, others],
        [],
    )
    assert await ids(keyed, ADMIN) == []
    assert await ids(keyed, ADMIN, namespace="alpha") == [mine, others]
    for key in (BETA, FIRST, ADMIN):
        refused = await keyed.client.delete(f"/v1/links/{mine}", headers=bearer(key))
        assert code(refused) == (404, "link_not_found")
    assert (await keyed.client.delete(f"/v1/links/{mine}", headers=bearer(OTHER))).status_code == 204
    gone = await keyed.client.get(f"/v1/links/{mine}", headers=bearer(ALPHA))
    assert code(gone) == (404, "link_not_found")
    assert "it was deleted, or saved on another server" in gone.json()["error"]["message"]
    admins = await keyed.client.delete(f"/v1/links/{others}", params={"namespace": "alpha"}, headers=bearer(ADMIN))
    assert admins.status_code == 204
    entries = (await keyed.client.get("/v1/audit", headers=bearer(ADMIN))).json()["data"]
    assert [(one["action"], one["target"]) for one in entries[:2]] == [
        ("DELETE /v1/links/{link_id}", f"link_id={others}, namespace=alpha"),
        ("DELETE /v1/links/{link_id}", f"link_id={mine}"),
    ]
    assert entries[2]["action"] == "POST /v1/links"


async def test_keys_in_shared_list_and_delete_only_their_own_links(keyed: Server) -> None:
    mine, others = (await saved(keyed, FIRST))["id"], (await saved(keyed, SECOND))["id"]
    assert (await ids(keyed, FIRST), await ids(keyed, SECOND), await ids(keyed, ALPHA)) == ([mine], [others], [])
    assert await ids(keyed, ADMIN) == [others, mine]
    for key in (SECOND, ALPHA):
        refused = await keyed.client.delete(f"/v1/links/{mine}", headers=bearer(key))
        assert code(refused) == (404, "link_not_found")
    for key, link in ((FIRST, mine), (ADMIN, others)):
        assert (await keyed.client.delete(f"/v1/links/{link}", headers=bearer(key))).status_code == 204


async def test_a_key_that_may_not_write_saves_and_deletes_nothing(keyed: Server) -> None:
    link = (await saved(keyed, ALPHA))["id"]
    for method, path in (("POST", "/v1/links"), ("DELETE", f"/v1/links/{link}")):
        body = COMPARE if method == "POST" else None
        refused = await keyed.client.request(method, path, json=body, headers=bearer(READER))
        assert code(refused) == (403, "insufficient_scope")


async def test_size_and_number_of_links_are_bounded(keyed: Server) -> None:
    large = {"view": "compare", "state": {"prompt": "x" * 200}}
    refused = await keyed.client.post("/v1/links", json=large, headers=bearer(ALPHA))
    assert code(refused) == (400, "limit_exceeded")
    assert "213 bytes of state given; at most 200" in refused.text
    for _ in range(2):
        await saved(keyed, ALPHA)
    refused = await keyed.client.post("/v1/links", json=COMPARE, headers=bearer(ALPHA))
    assert code(refused) == (507, "storage_full")
    assert "this key has 2 links; it may have 2" in refused.text
    await saved(keyed, OTHER)
    assert len(await ids(keyed, ALPHA, limit=1)) == 1
    first = await keyed.client.get("/v1/links?limit=1", headers=bearer(ALPHA))
    rest = await ids(keyed, ALPHA, cursor=first.json()["next_cursor"])
    assert len(rest) == 2  # that of OTHER, which has a bound of its own, is in the listing of their namespace
    assert code(await keyed.client.get("/v1/links?limit=201", headers=bearer(ALPHA)))[0] == 400


async def test_what_is_no_state_of_a_view_is_refused(server: Server) -> None:
    for wrong in (
        {"view": "nowhere", "state": {}},
        {"view": "compare"},
        {"view": "compare", "state": []},
        {"view": "compare", "state": {str(index): 0 for index in range(65)}},
        {"view": "compare", "state": {}, "id": "aaaaaaaaaaaaaaaa"},
    ):
        assert code(await server.client.post("/v1/links", json=wrong)) == (400, "invalid_request")
    for missing in ("short", "AAAAAAAAAAAAAAAA", "aaaaaaaaaaaaaaaa", "%00"):
        assert code(await server.client.get(f"/v1/links/{missing}")) == (404, "link_not_found")
