"""Databases of the oldest schema that is upgraded keep their content and get the tables of the code."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from steering.errors import StoreCorrupt
from steering.store.address import read_address
from steering.store.migrate import current
from steering.store.store import open_sql_store
from steering.store.tables import Base
from tests.steering.store.files import VECTOR
from tests.steering.store.old_schema import fill, oldest_database

DATES = {"created_at": "2025-01-01T00:00:00.000000Z", "updated_at": "2025-01-01T00:00:00.000000Z"}
STEERING = '{"interventions":[{"vector":"warmth@1"}]}'


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that nobody has opened yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.sqlite3'}"
    found: str = request.getfixturevalue("postgresql_url")
    return found


async def test_an_upgraded_database_keeps_its_content_and_has_the_tables_of_a_new_one(url: str) -> None:
    with oldest_database(url) as old:
        fill(
            old, "profiles", [{"namespace": "team", "name": "calm", "description": "d", "steering": STEERING, **DATES}]
        )
    assert current(read_address(url)) == ("0006", "0008")
    store = await open_sql_store(url)
    assert (await store.in_namespace("team").profiles.get("calm")).description == "d"
    assert (await store.shared.vectors.put(VECTOR)).version == 1
    await store.close()
    engine = create_engine(read_address(url).sync_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.exec_driver_sql("SELECT size FROM profiles").scalar() == len(STEERING)
    engine.dispose()


async def test_an_earlier_schema_is_refused_and_named(url: str) -> None:
    with oldest_database(url) as old:
        old.exec_driver_sql("UPDATE alembic_version SET version_num = '0003'")
    with pytest.raises(StoreCorrupt, match=r"schema 0003, this version knows 0006 to 0008"):
        await open_sql_store(url)
