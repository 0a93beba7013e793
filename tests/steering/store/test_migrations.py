"""Databases of earlier releases are upgraded and keep their content: what was there belongs to the namespace `shared`."""

from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from steering.errors import StoreCorrupt
from steering.store.address import read_address
from steering.store.records import VectorFilter
from steering.store.store import Store, open_sql_store
from steering.store.tables import Base
from steering.store.vectors import serialize
from tests.steering.store.files import VECTOR
from tests.steering.store.old_schema import database_at, fill
from tests.steering.store.planted import planted, same_numbers

DATE = "2025-01-01T00:00:00.000000Z"
DATES = {"created_at": DATE, "updated_at": DATE}
STEERING = '{"interventions":[{"vector":"warmth@5"}]}'


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that nobody has opened yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.sqlite3'}"
    found: str = request.getfixturevalue("postgresql_url")
    return found


def old_row(columns: dict[str, Any], version: int) -> dict[str, object]:
    kept = ("name", "method", "description", "tags", "searched", "sha256", "content")
    return {**{name: columns[name] for name in kept}, "version": version, "created_at": DATE}


def make_second_schema(url: str) -> None:
    """A database without namespaces: vectors, one of them damaged, a profile, a default, a job and a key."""
    _, large = serialize(planted("large", 1, layers=16, d_model=512))
    damaged = {**serialize(planted("damaged", 1))[1], "content": b"{not a vector"}
    last = {"warmth": 7, "large": 1, "damaged": 1, "deleted": 3}
    job = {"id": "job-1", "kind": "extract", "status": "succeeded", "request": "{}", "progress": "{}"}
    key = {"id": "key_1", "name": "team", "digest": "0" * 64, "scopes": "read", "limits": "{}", "created_at": DATE}
    with database_at(url, "0002") as old:
        fill(old, "vector_names", [{"name": name, "last_version": number} for name, number in last.items()])
        _, warmth = serialize(VECTOR)
        fill(old, "vectors", [old_row(warmth, 5), old_row(warmth, 7), old_row(large, 1), old_row(damaged, 1)])
        fill(old, "profiles", [{"name": "cheerful", "description": "d", "steering": STEERING, **DATES}])
        fill(old, "default_steering", [{"id": 1, "steering": STEERING, "updated_at": DATE}])
        fill(old, "jobs", [{**job, **DATES}])
        fill(old, "api_keys", [key])


async def test_a_database_of_the_first_schema_gets_the_new_tables(url: str) -> None:
    with database_at(url, "0001"):
        pass
    store = await open_sql_store(url)
    assert await store.keys.all() == ()
    assert await store.documents.get("note") is None
    await store.close()


async def test_what_was_there_before_namespaces_belongs_to_shared(url: str) -> None:
    make_second_schema(url)
    store = await open_sql_store(url)
    shared, team = store.shared, store.in_namespace("team")
    for seen in (shared, team):
        found = await seen.vectors.get("warmth", 5)
        assert same_numbers(found, VECTOR)
        assert (found.namespace, found.description, found.tags) == ("shared", VECTOR.description, VECTOR.tags)
        profile = await seen.profiles.get("cheerful")
        assert (profile.namespace, profile.created_at) == ("shared", DATE)
        assert (await seen.jobs.get("job-1")).namespace == "shared"
    assert await shared.profiles.default() == (await shared.profiles.get("cheerful")).steering
    assert await team.profiles.default() is None
    assert [key.namespace for key in await store.keys.all()] == ["shared"]
    await check_listing(store)
    assert (await shared.vectors.put(planted("deleted", 1))).version == 4, "no number is used again"
    assert (await shared.vectors.put(planted("warmth", 1))).version == 8
    assert (await team.vectors.put(planted("warmth", 1))).version == 1
    await store.close()


async def check_listing(store: Store) -> None:
    """Listings have the metadata of what was there; damaged content is left out of them and reported by name."""
    page = (await store.in_namespace("team").vectors.find(VectorFilter(search="WÄRME"))).items
    assert [(one.id, one.quality, one.recommended, one.created_at) for one in page] == [
        ("warmth@7", VECTOR.quality, VECTOR.recommended, DATE)
    ]
    assert [one.id for one in (await store.shared.vectors.find(VectorFilter())).items] == ["large@1", "warmth@7"]
    with pytest.raises(StoreCorrupt):
        await store.shared.vectors.get("damaged")


async def test_an_upgraded_database_has_the_tables_of_a_new_one(url: str) -> None:
    make_second_schema(url)
    await (await open_sql_store(url)).close()
    engine = create_engine(read_address(url).sync_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()
