"""Databases of earlier releases are upgraded and keep their content: what was there belongs to the namespace `shared`."""

from dataclasses import replace
from pathlib import Path

import pytest

from steering.errors import StoreCorrupt
from steering.store.base import VectorFilter
from steering.store.formats.stored_vector import StoredVector, serialize
from steering.store.sql.store import open_sql_store
from tests.steering.store.concurrent_writer import opened_behind_its_back
from tests.steering.store.files import VECTOR
from tests.steering.store.old_schema import database_at
from tests.steering.store.planted import planted, same_numbers

DATE = "2025-01-01T00:00:00.000000Z"


def old_row(stored: StoredVector, version: int) -> tuple[object, ...]:
    tags = f" {' '.join(stored.tags)} " if stored.tags else ""
    described = (stored.method, stored.description, tags, stored.description.casefold())
    return (stored.name, version, *described, DATE, stored.sha256, stored.content)


async def test_a_database_of_the_first_schema_gets_the_new_tables(tmp_path: Path) -> None:
    file = tmp_path / "old.sqlite3"
    database_at(file, "0001")
    store = await open_sql_store(f"sqlite:///{file}")
    assert await store.keys.all() == ()
    assert await store.documents.get("note") is None
    await store.close()


async def test_what_was_there_before_namespaces_belongs_to_shared(tmp_path: Path) -> None:
    file = tmp_path / "old.sqlite3"
    database_at(file, "0002")
    large = serialize(planted("large", 1, layers=16, d_model=512))
    damaged = replace(serialize(planted("damaged", 1)), content=b"{not a vector")
    with opened_behind_its_back(file) as other:
        other.execute("PRAGMA foreign_keys = ON")
        for name, last in (("warmth", 7), ("large", 1), ("damaged", 1), ("deleted", 3)):
            other.execute("INSERT INTO vector_names VALUES (?, ?)", (name, last))
        rows = [old_row(serialize(VECTOR), 5), old_row(serialize(VECTOR), 7), old_row(large, 1), old_row(damaged, 1)]
        other.executemany("INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        steering = '{"interventions":[{"vector":"warmth@5"}]}'
        other.execute("INSERT INTO profiles VALUES ('cheerful', 'd', ?, ?, ?)", (steering, DATE, DATE))
        other.execute("INSERT INTO default_steering VALUES (1, ?, ?)", (steering, DATE))
        other.execute(
            "INSERT INTO jobs (id, kind, status, request, progress, created_at, updated_at) "
            "VALUES ('job-1', 'extract', 'succeeded', '{}', '{}', ?, ?)",
            (DATE, DATE),
        )
        other.execute("INSERT INTO api_keys VALUES ('key_1', 'team', ?, 'read', '{}', ?, NULL, NULL)", ("0" * 64, DATE))
    store = await open_sql_store(f"sqlite:///{file}")
    shared, team = store.shared, store.in_namespace("team")
    for seen in (shared, team):
        found = await seen.vectors.get("warmth", 5)
        assert same_numbers(found, VECTOR)
        assert (found.namespace, found.description, found.tags) == ("shared", VECTOR.description, VECTOR.tags)
        page = (await seen.vectors.find(VectorFilter(search="WÄRME"))).vectors
        assert [(one.id, one.quality, one.recommended, one.created_at) for one in page] == [
            ("warmth@7", VECTOR.quality, VECTOR.recommended, DATE)
        ]
        assert [one.id for one in (await seen.vectors.find(VectorFilter())).vectors] == ["large@1", "warmth@7"]
        profile = await seen.profiles.get("cheerful")
        assert (profile.namespace, profile.created_at) == ("shared", DATE)
        assert (await seen.jobs.get("job-1")).namespace == "shared"
    assert await shared.profiles.default() == (await shared.profiles.get("cheerful")).steering
    assert await team.profiles.default() is None
    assert [key.namespace for key in await store.keys.all()] == ["shared"]
    with pytest.raises(StoreCorrupt):
        await shared.vectors.get("damaged")
    assert (await shared.vectors.put(planted("deleted", 1))).version == 4, "no number is used again"
    assert (await shared.vectors.put(planted("warmth", 1))).version == 8
    assert (await team.vectors.put(planted("warmth", 1))).version == 1
    await store.close()
