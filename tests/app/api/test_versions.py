"""GET /v1/vectors/{name}/versions, and the deletion of one version."""

from tests.app.conftest import Server


async def test_versions_are_listed_and_deleted_one_by_one(server: Server) -> None:
    for _ in range(3):
        await server.register("mood")
    found = (await server.client.get("/v1/vectors/mood/versions?limit=2")).json()
    assert [one["id"] for one in found["data"]] == ["mood@3", "mood@2"]
    assert set(found["data"][0]) == {
        "namespace", "id", "version", "created_at", "method", "layers", "sha256", "recommended", "auroc",
    }  # fmt: skip
    following = (await server.client.get(f"/v1/vectors/mood/versions?limit=2&before={found['next_before']}")).json()
    assert ([one["version"] for one in following["data"]], following["next_before"]) == ([1], None)
    assert (await server.client.delete("/v1/vectors/mood?version=3")).status_code == 204
    assert (await server.client.get("/v1/vectors/mood")).json()["version"] == 2
    assert (await server.client.delete("/v1/vectors/mood?version=3")).status_code == 404
    assert (await server.client.get("/v1/vectors/nobody/versions")).status_code == 404
    await server.client.put("/v1/profiles/p", json={"interventions": [{"vector": "mood@1"}]})
    assert (await server.client.delete("/v1/vectors/mood?version=1")).status_code == 409
    assert (await server.client.delete("/v1/vectors/mood?version=2")).status_code == 204
    assert (await server.client.delete("/v1/vectors/mood?version=1&force=true")).status_code == 204
    assert (await server.client.get("/v1/vectors/mood")).status_code == 404
