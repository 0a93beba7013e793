"""Two servers on one database, of which one is older: the older one says so and stops writing, the newer one goes on."""

from pathlib import Path

from tests.app.conftest import D_MODEL, Server, StartServer
from tests.app.policy.test_keys import code
from tests.polling import holds
from tests.steering.store.concurrent_writer import opened_behind_its_back

REASON = "the database has schema 9999, this server knows 0008: a newer server has upgraded it; upgrade this one"


async def outdated(start: StartServer, file: Path) -> Server:
    """A server whose database another one has upgraded meanwhile, to a schema with a column that it does not know."""
    server = await start(database=f"sqlite:///{file}")
    await server.register("mood")
    profile = {"interventions": [{"vector": "mood", "strength": 0.1}]}
    assert (await server.client.put("/v1/profiles/calm", json=profile)).status_code == 200
    assert (await server.client.get("/health/ready")).status_code == 200
    with opened_behind_its_back(file) as other:
        other.execute("ALTER TABLE vectors ADD COLUMN planted TEXT NOT NULL DEFAULT ''")
        other.execute(
            "CREATE TRIGGER needs_it BEFORE INSERT ON vectors WHEN NEW.planted = '' BEGIN SELECT RAISE(ABORT, 'x'); END"
        )
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    return server


async def test_a_server_whose_database_was_upgraded_is_not_ready_and_says_why(
    start: StartServer, tmp_path: Path
) -> None:
    client = (await outdated(start, tmp_path / "store.sqlite3")).client

    async def refused() -> bool:
        return (await client.get("/health/ready")).status_code == 503  # the store is asked once a second

    await holds(refused)
    assert (await client.get("/health/ready")).json()["error"]["message"] == REASON
    assert (await client.get("/health/live")).status_code == 200


async def test_its_writes_are_refused_with_that_reason_while_reads_and_answers_go_on(
    start: StartServer, tmp_path: Path
) -> None:
    client = (await outdated(start, tmp_path / "store.sqlite3")).client
    for method, path, body in (
        ("POST", "/v1/vectors", {"name": "other", "directions": {"1": [1.0] * D_MODEL}}),
        ("PUT", "/v1/profiles/other", {"interventions": [{"vector": "mood", "strength": 0.1}]}),
        ("DELETE", "/v1/profiles/calm", None),
        ("POST", "/v1/links", {"view": "compare", "state": {}}),
        ("POST", "/v1/keys", {"name": "a", "scopes": ["admin"]}),
    ):
        answer = await client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, REASON), path
        assert code(answer)[1] == "store_unavailable"
    assert (await client.get("/v1/vectors/mood")).status_code == 200
    ask = {"prompt": "a", "max_tokens": 2, "steering": {"profile": "calm"}}
    assert (await client.post("/v1/generate", json=ask)).status_code == 200
