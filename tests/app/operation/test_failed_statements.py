"""A statement that the database refuses is logged with its cause, and with nothing that the caller wrote."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.core.components import open_database
from steering.store.store import Store
from tests.app.conftest import D_MODEL, Server, StartServer
from tests.polling import until
from tests.steering.store.concurrent_writer import opened_behind_its_back

SECRET = "zebra-and-marmalade"
ADMIN = "sk-admin-0123456789abcdef"
REFUSALS = {
    "links": "INSERT", "jobs": "INSERT", "job_outputs": "INSERT", "profiles": "INSERT", "api_keys": "INSERT",
    "default_steering": "INSERT", "documents": "INSERT", "vectors": "INSERT",
}  # fmt: skip


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that the server logs, as it writes it."""
    written = io.StringIO()
    (ours,) = (one for one in logging.getLogger().handlers if type(one) is logging.StreamHandler)
    before = ours.setStream(written)
    yield written
    ours.setStream(before)


@pytest.fixture
async def server(start: StartServer, tmp_path: Path) -> Server:
    """A server with a vector, on a database that refuses to insert anything else."""
    file = tmp_path / "store.sqlite3"
    server = await start(database=f"sqlite:///{file}", api_keys=ADMIN, store=open_database)
    server.client.headers["authorization"] = f"Bearer {ADMIN}"
    await server.register("mood")
    with opened_behind_its_back(file) as other:
        for table, event in REFUSALS.items():
            other.execute(
                f"CREATE TRIGGER refuse_{table} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, 'planted'); END"
            )
    return server


async def sent(client: httpx2.AsyncClient) -> dict[str, httpx2.Response]:
    """Sends a secret to everything that stores what callers write."""
    steering = [{"vector": "mood", "strength": 0.1}]
    profile = {"interventions": steering, "description": SECRET}
    extract = {"name": "other", "pairs": [{"positive": f"{SECRET} {i}", "negative": f"bad {i}"} for i in range(12)]}
    vector = {"name": "third", "directions": {"1": [1.0] * D_MODEL}, "description": SECRET}
    return {
        "links": await client.post("/v1/links", json={"view": "compare", "state": {"prompt": SECRET}}),
        "profiles": await client.put("/v1/profiles/calm", json=profile),
        "api_keys": await client.post("/v1/keys", json={"name": SECRET, "scopes": ["admin"]}),
        "jobs": await client.post("/v1/vectors/extract", json={**extract, "description": SECRET}),
        "vectors": await client.post("/v1/vectors", json=vector),
    }


async def test_no_failed_statement_shows_what_the_caller_wrote(server: Server, log: io.StringIO) -> None:
    answers = await sent(server.client)
    assert {name: one.status_code for name, one in answers.items()} == dict.fromkeys(answers, 500)
    text = log.getvalue()
    assert text.count("request_failed") == len(answers)
    assert "planted" in text, "the cause is logged"
    assert SECRET not in text
    assert "INSERT INTO" not in text


async def test_a_batch_whose_answers_cannot_be_stored_shows_none_of_them(server: Server, log: io.StringIO) -> None:
    store = server.state.store
    assert isinstance(store, Store)
    async with store.database.engine.begin() as connection:
        await connection.exec_driver_sql("DROP TRIGGER refuse_jobs")
    line = f'{{"prompt": "{SECRET}", "max_tokens": 2}}'
    answer = await server.client.post("/v1/generate/batch", content=line, headers={"content-type": "application/jsonl"})
    assert answer.status_code == 202, answer.text
    await until(lambda: "planted" in log.getvalue(), 30)
    assert SECRET not in log.getvalue()
