"""SQLite under the store: its modes, two processes at once, and every way in which a file can be wrong."""

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import StorageFull, StoreCorrupt, StoreUnavailable, VectorNotFound
from steering.spec import SteeringSpec
from steering.store.base import Profile, VectorFilter
from steering.store.sql_store import SqlStore, open_sql_store
from steering.store.tables import Base
from steering.vectors import ConceptVector
from tests.steering.store.planted import planted, same_numbers

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "made" / "for it" / "store 100%.sqlite3"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[SqlStore]:
    opened = await open_sql_store(f"sqlite:///{file}")
    yield opened
    await opened.close()


@contextmanager
def opened_behind_its_back(file: Path) -> Iterator[sqlite3.Connection]:
    """Another program on the same file."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        yield connection


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


async def test_every_connection_is_in_the_mode_the_store_relies_on(store: SqlStore) -> None:
    modes = {"journal_mode": "wal", "busy_timeout": 30_000, "foreign_keys": 1, "synchronous": 2}
    for pragma, expected in modes.items():

        async def in_a_writer(connection: AsyncConnection, pragma: str = pragma) -> Any:
            return await connection.scalar(text(f"PRAGMA {pragma}"))

        assert await store.database.write(in_a_writer) == expected
        assert await store.database.rows(text(f"PRAGMA {pragma}")) == [(expected,)]


async def test_two_processes_of_fifty_writers_and_readers_meet_no_error(file: Path) -> None:
    assert in_processes("crowd", f"sqlite:///{file}") == {"problems": []}
    store = await open_sql_store(f"sqlite:///{file}")
    assert (await store.vectors.get("shared")).version == 2 * 25 * 3
    for version in range(1, 151):
        await store.vectors.get("shared", version)
    assert await store.jobs.interrupt() == 150
    await store.close()


def test_killed_in_the_middle_of_writes_it_opens_and_nothing_is_half_there(file: Path) -> None:
    report = in_processes("kill", f"sqlite:///{file}", "50")
    assert report["problems"] == []
    assert report["rounds"] == 50
    assert int(str(report["kept"])) >= 33  # two of three children were killed after a first acknowledged write


async def test_a_writer_elsewhere_delays_writers_and_no_reader(store: SqlStore, file: Path) -> None:
    await store.vectors.put(planted("warmth", 1))
    with opened_behind_its_back(file) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(store.vectors.put(planted("warmth", 2)))
        for _ in range(20):
            assert (await store.vectors.get("warmth")).version == 1
        assert not waiting.done()
        other.execute("COMMIT")
    assert (await waiting).version == 2


async def test_callers_who_leave_take_nothing_with_them(store: SqlStore) -> None:
    chance = random.Random(0)
    for turn in range(30):
        tasks = [asyncio.create_task(store.vectors.put(planted("warmth", turn))) for _ in range(3)]
        tasks.append(asyncio.create_task(store.vectors.find(VectorFilter())))  # type: ignore[arg-type]
        await asyncio.sleep(chance.uniform(0.0, 0.01))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    put = await store.vectors.put(planted("warmth", 99))
    for version in range(1, put.version + 1):
        await store.vectors.get("warmth", version)


async def test_everything_is_there_after_a_restart_in_one_file(store: SqlStore, file: Path) -> None:
    await store.vectors.put(planted("warmth", 1))
    await store.vectors.put(planted("cold", 2))
    await store.vectors.delete("cold")
    await store.profiles.put(Profile("cheerful", SteeringSpec(), "d"))
    await store.profiles.set_default(SteeringSpec())
    await store.close()
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    again = await open_sql_store(f"sqlite:///{file}")
    assert same_numbers(await again.vectors.get("warmth"), planted("warmth", 1))
    assert (await again.vectors.put(planted("cold", 2))).version == 2
    assert (await again.profiles.get("cheerful")).description == "d"
    assert await again.profiles.default() == SteeringSpec()
    await again.close()


class TestSchema:
    async def test_the_migrations_make_the_tables_of_the_code(self, store: SqlStore, file: Path) -> None:
        await store.ping()
        engine = create_engine(f"sqlite:///{file}")
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        engine.dispose()

    async def test_a_schema_newer_than_the_code_is_refused_and_left_alone(self, store: SqlStore, file: Path) -> None:
        await store.vectors.put(planted("warmth", 1))
        await store.close()
        with opened_behind_its_back(file) as other:
            other.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(StoreCorrupt, match=r"schema 9999, this version knows up to 0001.*newer version"):
            await open_sql_store(f"sqlite:///{file}")
        with opened_behind_its_back(file) as other:
            assert other.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
            assert other.execute("SELECT count(*) FROM vectors").fetchone() == (1,)

    async def test_a_table_that_has_gone_is_noticed_at_start(self, store: SqlStore, file: Path) -> None:
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


class TestDamage:
    async def test_a_blob_that_changed_is_set_aside_and_said_to_be_corrupt(self, store: SqlStore, file: Path) -> None:
        for name in ("a", "b", "c"):
            await store.vectors.put(planted(name, 1))
        with opened_behind_its_back(file) as other:
            content = bytearray(other.execute("SELECT content FROM vectors WHERE name = 'b'").fetchone()[0])
            content[-1] ^= 1
            other.execute("UPDATE vectors SET content = ? WHERE name = 'b'", (bytes(content),))
        with pytest.raises(StoreCorrupt, match="b@1"):
            await store.vectors.get("b")
        page = await store.vectors.find(VectorFilter(), 2)
        assert [vector.name for vector in page.vectors] == ["a"]
        page = await store.vectors.find(VectorFilter(), 2, page.next_cursor)
        assert [vector.name for vector in page.vectors] == ["c"]
        await store.vectors.delete("b")
        with pytest.raises(VectorNotFound):
            await store.vectors.get("b")

    async def test_a_blob_that_says_nothing_sensible_is_corrupt_even_with_its_digest(
        self, store: SqlStore, file: Path
    ) -> None:
        await store.vectors.put(planted("a", 1))
        with opened_behind_its_back(file) as other:
            digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            other.execute("UPDATE vectors SET content = x'', sha256 = ?", (digest,))
        with pytest.raises(StoreCorrupt, match="a@1"):
            await store.vectors.get("a")

    async def test_a_profile_that_is_no_steering_is_corrupt(self, store: SqlStore, file: Path) -> None:
        await store.profiles.put(Profile("cheerful", SteeringSpec()))
        with opened_behind_its_back(file) as other:
            other.execute("UPDATE profiles SET steering = '{'")
        with pytest.raises(StoreCorrupt, match="cheerful"):
            await store.profiles.get("cheerful")

    async def test_a_file_that_is_no_database_is_refused_and_left_alone(self, file: Path) -> None:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"a diary, not a database\n" * 200)
        with pytest.raises(StoreCorrupt):
            await open_sql_store(f"sqlite:///{file}")
        assert file.read_bytes() == b"a diary, not a database\n" * 200

    async def test_a_file_overwritten_in_its_middle_is_corrupt(self, store: SqlStore, file: Path) -> None:
        for seed in range(20):
            await store.vectors.put(planted("warmth", seed, d_model=1024))
        await store.close()
        content = bytearray(file.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        file.write_bytes(content)
        with pytest.raises(StoreCorrupt):
            await open_sql_store(f"sqlite:///{file}")

    async def test_a_place_that_cannot_be_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        for place in (tmp_path / "file" / "store.sqlite3", tmp_path / "folder"):
            with pytest.raises(StoreUnavailable) as refusal:
                await open_sql_store(f"sqlite:///{place}")
            assert str(tmp_path) not in refusal.value.message


async def test_a_full_store_says_so_keeps_nothing_half_and_works_again_when_there_is_room(file: Path) -> None:
    store = await open_sql_store(f"sqlite:///{file}?max_mb=1")
    puts = [store.vectors.put(planted("warmth", seed, layers=4, d_model=4096)) for seed in range(1, 31)]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ConceptVector, StorageFull}
    kept = sum(isinstance(outcome, ConceptVector) for outcome in outcomes)
    assert 5 <= kept < 16
    newest = await store.vectors.get("warmth")
    assert newest.version == kept
    assert newest.sha256 in {outcome.sha256 for outcome in outcomes if isinstance(outcome, ConceptVector)}
    with pytest.raises(StorageFull):
        await store.vectors.put(planted("other", 1, layers=4, d_model=4096))
    assert [vector.name for vector in (await store.vectors.find(VectorFilter())).vectors] == ["warmth"]
    await store.vectors.delete("warmth")
    assert (await store.vectors.put(planted("warmth", 1))).version == kept + 1
    await store.close()
