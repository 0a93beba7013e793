"""SQLite under the store: its modes, two processes at once, killing, leaving, and the schema."""

import asyncio
import gc
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import StoreCorrupt
from steering.spec import SteeringSpec
from steering.store.address import read_address
from steering.store.backup import backup
from steering.store.migrate import current
from steering.store.store import Store, open_sql_store
from steering.store.tables import Base
from tests.steering.store.concurrent_writer import opened_behind_its_back
from tests.steering.store.planted import planted, same_numbers

REPOSITORY = Path(__file__).resolve().parents[3]


def in_processes(*arguments: str) -> dict[str, object]:
    """The report of tests/steering/store/children.py."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.steering.store.children", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report: dict[str, object] = json.loads(done.stdout)
    return report


async def test_every_connection_is_in_the_mode_the_store_relies_on(store: Store) -> None:
    modes = {"journal_mode": "wal", "busy_timeout": 15_000, "foreign_keys": 1, "synchronous": 2}
    for pragma, expected in modes.items():

        async def in_a_writer(connection: AsyncConnection, pragma: str = pragma) -> Any:
            return await connection.scalar(text(f"PRAGMA {pragma}"))

        assert await store.database.write(in_a_writer) == expected
        assert await store.database.rows(text(f"PRAGMA {pragma}")) == [(expected,)]


async def test_two_processes_of_fifty_writers_and_readers_meet_no_error(file: Path) -> None:
    assert in_processes("crowd", f"sqlite:///{file}") == {"problems": []}
    store = await open_sql_store(f"sqlite:///{file}")
    assert (await store.shared.vectors.get("shared")).version == 2 * 25 * 3
    for version in range(1, 151):
        await store.shared.vectors.get("shared", version)
    assert (await store.servers.renew("server", 10, {})).interrupted == 150
    await store.close()


async def test_a_new_file_that_another_process_writes_to_is_waited_for(file: Path) -> None:
    """SQLite's busy timeout does not cover the change to WAL: it fails at once while another process writes."""
    file.parent.mkdir(parents=True)
    with opened_behind_its_back(file) as other:
        other.execute("BEGIN IMMEDIATE")
        with closing(sqlite3.connect(file, timeout=30)) as impatient, pytest.raises(sqlite3.OperationalError):
            impatient.execute("PRAGMA journal_mode = WAL")
        opening = asyncio.create_task(open_sql_store(f"sqlite:///{file}"))
        assert not (await asyncio.wait({opening}, timeout=0.5))[0]
        other.execute("ROLLBACK")
        store = await opening
    assert await store.database.rows(text("PRAGMA journal_mode")) == [("wal",)]
    await store.close()


def test_killed_in_the_middle_of_writes_it_opens_and_nothing_is_half_there(file: Path) -> None:
    report = in_processes("kill", f"sqlite:///{file}", "50")
    assert report["problems"] == []
    assert int(str(report["kept"])) >= 33  # two of three children were killed after a first acknowledged write


async def test_a_writer_elsewhere_delays_writers_and_no_reader(store: Store, file: Path) -> None:
    await store.shared.vectors.put(planted("warmth", 1))
    with opened_behind_its_back(file) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(store.shared.vectors.put(planted("warmth", 2)))
        for _ in range(20):
            assert (await store.shared.vectors.get("warmth")).version == 1
        assert not waiting.done()
        other.execute("COMMIT")
    assert (await waiting).version == 2


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without it, what a cancelled call left behind stays behind, where the test can see it."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_callers_who_leave_leave_no_lock_and_nothing_half_done(store: Store, file: Path) -> None:
    chance = random.Random(0)
    for turn in range(60):
        calls = [store.shared.vectors.put(planted("warmth", turn)) for _ in range(3)]
        tasks = [asyncio.ensure_future(call) for call in (*calls, store.shared.vectors.find())]
        await asyncio.sleep(chance.uniform(0.0, 0.01))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    put = await store.shared.vectors.put(planted("warmth", 99))
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
    for version in range(1, put.version + 1):
        await store.shared.vectors.get("warmth", version)


async def test_everything_is_there_after_a_restart_in_one_file_and_a_reserve(store: Store, file: Path) -> None:
    await store.shared.vectors.put(planted("warmth", 1))
    await store.shared.vectors.put(planted("cold", 2))
    await store.shared.vectors.delete("cold")
    await store.shared.profiles.put("cheerful", SteeringSpec(), "d")
    await store.shared.profiles.set_default(SteeringSpec())
    await store.close()
    assert {entry.name for entry in file.parent.iterdir()} == {file.name, f"{file.name}-reserve"}
    again = await open_sql_store(f"sqlite:///{file}")
    assert same_numbers(await again.shared.vectors.get("warmth"), planted("warmth", 1))
    assert (await again.shared.vectors.put(planted("cold", 2))).version == 2
    assert (await again.shared.profiles.get("cheerful")).description == "d"
    assert await again.shared.profiles.default() == SteeringSpec()
    await again.close()


class TestSchema:
    async def test_a_new_database_has_the_tables_of_the_code(self, store: Store, file: Path) -> None:
        await store.ping()
        engine = create_engine(f"sqlite:///{file}")
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        engine.dispose()

    async def test_a_schema_newer_than_the_code_is_refused_and_left_alone(self, store: Store, file: Path) -> None:
        await store.shared.vectors.put(planted("warmth", 1))
        await store.close()
        with opened_behind_its_back(file) as other:
            other.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(StoreCorrupt, match=r"schema 9999, this version knows 0006 to 0008.*another version"):
            await open_sql_store(f"sqlite:///{file}")
        with opened_behind_its_back(file) as other:
            assert other.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
            assert other.execute("SELECT count(*) FROM vectors").fetchone() == (1,)

    async def test_a_table_that_has_gone_is_noticed_at_start(self, store: Store, file: Path) -> None:
        await store.close()
        with opened_behind_its_back(file) as other:
            other.execute("DROP TABLE vectors")
            other.execute("DROP TABLE vector_names")
        with pytest.raises(StoreCorrupt, match="tables"):
            await open_sql_store(f"sqlite:///{file}")

    async def test_a_database_with_tables_of_somebody_else_is_refused(self, file: Path) -> None:
        file.parent.mkdir(parents=True)
        with opened_behind_its_back(file) as other:
            other.execute("CREATE TABLE jobs (x)")
        with pytest.raises(StoreCorrupt):
            await open_sql_store(f"sqlite:///{file}")
        with opened_behind_its_back(file) as other:
            assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("jobs",)]

    async def test_which_schema_a_file_has_can_be_asked_without_making_one(self, store: Store, file: Path) -> None:
        await store.ping()
        assert current(read_address(f"sqlite:///{file}")) == ("0008", "0008")
        missing = file.with_name("missing")
        assert current(read_address(f"sqlite:///{missing}")) == (None, "0008")
        assert [entry.name for entry in file.parent.iterdir() if "missing" in entry.name] == []


async def test_a_database_and_its_log_are_readable_by_their_owner_only(store: Store, file: Path) -> None:
    await store.shared.vectors.put(planted("warmth", 1))
    modes = {one.name.removeprefix(file.name): one.stat().st_mode & 0o777 for one in file.parent.iterdir()}
    assert modes == dict.fromkeys(("", "-wal", "-shm", "-reserve"), 0o600)
    copy = file.parent / "copy"
    await asyncio.to_thread(backup, read_address(f"sqlite:///{file}"), copy)
    assert copy.stat().st_mode & 0o777 == 0o600
