"""Databases with something in every table, for the tests of copies, backups and pruning."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from steering.store.address import read_address
from steering.store.backup import copied_tables
from steering.store.records import JobRecord, KeyRecord
from steering.store.store import Store, open_sql_store
from tests.contracts.stores import steering
from tests.postgresql_server.server import PostgreSQL
from tests.steering.store.planted import planted

MakeUrl = Callable[[str], str]


@pytest.fixture
def make(postgresql: PostgreSQL, tmp_path: Path) -> Iterator[MakeUrl]:
    """Returns the URL of a new database of a kind."""
    made: list[str] = []

    def url(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/db {len(list(tmp_path.iterdir()))} 100%.sqlite3"
        made.append(postgresql.create())
        return made[-1]

    yield url
    for one in made:
        postgresql.drop(one)


async def fill_store(store: Store) -> None:
    """Something in every table."""
    for seed in range(3):
        await store.shared.vectors.put(planted("warmth", seed))
    await store.shared.vectors.put(planted("cold", 5))
    await store.shared.vectors.delete("cold")
    await store.shared.vectors.describe("warmth", "Wärme 🙂\n%", ("a", "b"))
    await store.shared.profiles.put("cheerful", steering({"vector": "warmth@2", "strength": 0.1}), "d")
    await store.shared.profiles.set_default(steering({"vector": "warmth@1"}))
    for number in range(3):
        await store.shared.jobs.put(
            JobRecord(id=f"job-{number}", kind="extract", status="succeeded", request={"x": 1 / 3}, owner="s")
        )
        await store.audit.append(key="key-a", action="PUT", target=f"t{number}", request_id="r", status=200)
    await store.keys.create(KeyRecord("key_1", "a", "0" * 64, ("read",), {"concurrency": 3}))
    await store.outputs.append("output-1", 0, "line\n")
    await store.shared.links.put("a" * 16, "compare", {"prompt": "Wärme"})
    await store.documents.put("policy", {"a": [1.5, None, True]})


def content(url: str) -> dict[str, list[Any]]:
    """Every row of every table that is copied."""
    engine = create_engine(read_address(url).sync_url)
    with engine.connect() as connection:
        found = {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr) for table in copied_tables()
        }
    engine.dispose()
    assert all(found.values())
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
async def source(request: pytest.FixtureRequest, make: MakeUrl) -> AsyncIterator[str]:
    """The URL of a database with content, which a server has open."""
    url = make(request.param)
    store = await open_sql_store(url)
    await fill_store(store)
    yield url
    await store.close()
