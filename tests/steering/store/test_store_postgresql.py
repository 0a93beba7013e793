"""PostgreSQL under the store: its timeouts, a pooler in between, several processes at once, restarts, and the schema."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import StoreCorrupt, StoreUnavailable
from steering.spec import SteeringSpec
from steering.store.address import read_address
from steering.store.migrate import current
from steering.store.records import JobRecord
from steering.store.store import Store, open_sql_store
from steering.store.tables import Base
from tests.postgresql_server.server import PostgreSQL
from tests.postgresql_server.transaction_pooler import TransactionPooler
from tests.steering.store.old_schema import fill, oldest_database
from tests.steering.store.planted import planted, same_numbers
from tests.steering.store.test_store_sqlite import in_processes


@pytest.fixture
async def store(postgresql_url: str) -> AsyncIterator[Store]:
    opened = await open_sql_store(postgresql_url)
    yield opened
    await opened.close()


@pytest.fixture
def own_server() -> Iterator[PostgreSQL]:
    """A server that the test may stop."""
    with PostgreSQL() as server:
        yield server


async def test_every_transaction_has_timeouts_and_leaves_none_behind(store: Store) -> None:
    settings = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")

    async def inside(connection: AsyncConnection) -> list[Any]:
        return [await connection.scalar(text(f"SHOW {name}")) for name in settings]

    assert await store.database.read(inside) == ["30s", "15s", "0"]
    assert await store.database.write(inside) == ["30s", "15s", "30s"]


async def test_a_connection_whose_other_end_is_silent_is_lost_after_half_a_minute(store: Store) -> None:
    async def parameters(connection: AsyncConnection) -> dict[str, str]:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, psycopg.AsyncConnection)
        return driver.info.get_parameters()

    wanted = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "30000"}
    assert (await store.database.read(parameters)).items() >= wanted.items()


async def test_a_server_that_vanished_inside_a_write_loses_the_lock_of_all_writers(
    store: Store, postgresql_url: str
) -> None:
    other = await open_sql_store(postgresql_url)
    go, holds = asyncio.Event(), asyncio.Event()

    async def vanish(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT set_config('idle_in_transaction_session_timeout', '100', true)"))
        holds.set()
        await go.wait()
        await connection.execute(text("SELECT 1"))

    vanishing = asyncio.create_task(other.database.write(vanish))
    await holds.wait()
    assert (await store.shared.vectors.put(planted("warmth", 1))).version == 1
    go.set()
    with pytest.raises(StoreUnavailable):
        await vanishing
    await other.ping()
    await other.close()


async def test_a_statement_that_takes_too_long_is_ended(store: Store) -> None:
    async def slow(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT set_config('statement_timeout', '50', true)"))
        await connection.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(StoreUnavailable):
        await store.database.read(slow)
    await store.ping()


async def test_a_writer_elsewhere_delays_writers_and_no_reader(store: Store, postgresql_url: str) -> None:
    other = await open_sql_store(postgresql_url)
    go, holds = asyncio.Event(), asyncio.Event()

    async def hold(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT 1"))
        holds.set()
        await go.wait()

    holding = asyncio.create_task(other.database.write(hold))
    await holds.wait()
    writing = asyncio.create_task(store.shared.vectors.put(planted("warmth", 1)))
    for _ in range(20):
        assert (await store.shared.vectors.find()).items == ()
    assert not writing.done()
    go.set()
    await holding
    assert (await writing).version == 1
    await other.close()


def test_two_processes_of_fifty_writers_and_readers_meet_no_error(postgresql_url: str) -> None:
    assert in_processes("crowd", postgresql_url) == {"problems": []}


async def test_servers_that_start_together_migrate_once(postgresql_url: str) -> None:
    stores = await asyncio.gather(*(open_sql_store(postgresql_url) for _ in range(6)))
    for one in stores:
        await one.shared.vectors.put(planted("warmth", 1))
    assert (await stores[0].shared.vectors.get("warmth")).version == 6
    await asyncio.gather(*(one.close() for one in stores))


async def test_behind_a_transaction_pooler_no_transaction_needs_the_session_of_another(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    folder = postgresql.folder / f"pooler-{database}"
    folder.mkdir()
    async with TransactionPooler(folder, postgresql.folder, database) as pooler:
        store = await open_sql_store(postgresql_url.replace(str(postgresql.folder), str(folder)))

        async def work(number: int) -> None:
            for turn in range(5):
                put = await store.shared.vectors.put(planted("warmth", number))
                assert same_numbers(await store.shared.vectors.get("warmth", put.version), planted("warmth", number))
                await store.shared.jobs.put(JobRecord(id=f"job-{number}-{turn}", kind="extract", status="running"))
                await store.shared.profiles.put(f"p{number}", SteeringSpec())
                await store.shared.vectors.find(search="warm")

        await asyncio.gather(*(work(number) for number in range(8)))
        assert (await store.shared.vectors.get("warmth")).version == 40
        assert pooler.transactions > 200
        await store.close()


async def test_the_pooler_refuses_what_the_store_avoids(postgresql: PostgreSQL, postgresql_url: str) -> None:
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    folder = postgresql.folder / f"pooler-{database}"
    folder.mkdir()
    async with TransactionPooler(folder, postgresql.folder, database):
        client = await psycopg.AsyncConnection.connect(
            host=str(folder), user="postgres", dbname=database, autocommit=True, prepare_threshold=0
        )

        async def repeat() -> None:
            for _ in range(4):
                await client.execute("SELECT %s::int", (1,))

        with pytest.raises(psycopg.Error, match="prepared statement"):
            await repeat()
        await client.close()


async def test_while_the_database_is_down_the_store_is_unavailable_and_goes_on_afterwards(
    own_server: PostgreSQL,
) -> None:
    store = await open_sql_store(own_server.create())
    await store.shared.vectors.put(planted("warmth", 1))
    for how in (signal.SIGINT, signal.SIGQUIT):
        await asyncio.to_thread(own_server.stop, how)
        for call in (store.ping(), store.shared.vectors.get("warmth"), store.shared.vectors.put(planted("cold", 1))):
            with pytest.raises(StoreUnavailable):
                await call
        await asyncio.to_thread(own_server.start)
        await store.ping()
        assert same_numbers(await store.shared.vectors.get("warmth"), planted("warmth", 1))
        await store.shared.vectors.put(planted("warmth", 1))
    assert (await store.shared.vectors.get("warmth")).version == 3
    await store.close()


async def test_writes_that_were_acknowledged_survive_a_crash_of_the_database(own_server: PostgreSQL) -> None:
    store = await open_sql_store(own_server.create())
    acknowledged: list[int] = []

    async def write() -> None:
        while True:
            acknowledged.append((await store.shared.vectors.put(planted("warmth", 1))).version)

    writing = asyncio.create_task(write())
    while len(acknowledged) < 20:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.to_thread(own_server.stop, signal.SIGQUIT)
    with pytest.raises(StoreUnavailable):
        await writing
    await asyncio.to_thread(own_server.start)
    newest = (await store.shared.vectors.get("warmth")).version
    assert newest in (acknowledged[-1], acknowledged[-1] + 1)  # one more may be committed and not acknowledged
    for version in acknowledged:
        await store.shared.vectors.get("warmth", version)
    await store.close()


class TestSchema:
    async def test_the_migrations_make_the_tables_of_the_code(self, store: Store, postgresql_url: str) -> None:
        await store.ping()
        engine = create_engine(postgresql_url)
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        engine.dispose()

    async def test_a_schema_newer_than_the_code_is_refused(self, store: Store, postgresql_url: str) -> None:
        async def age(connection: AsyncConnection) -> None:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

        await store.database.write(age)
        with pytest.raises(StoreCorrupt, match="schema 9999"):
            await open_sql_store(postgresql_url)
        assert current(read_address(postgresql_url))[0] == "9999"

    async def test_a_database_with_tables_of_somebody_else_is_refused(self, postgresql_url: str) -> None:
        engine = create_engine(postgresql_url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE jobs (x int)"))
        engine.dispose()
        with pytest.raises(StoreCorrupt):
            await open_sql_store(postgresql_url)


async def test_a_database_that_does_not_exist_is_unavailable_without_its_name(postgresql: PostgreSQL) -> None:
    with pytest.raises(StoreUnavailable) as refusal:
        await open_sql_store(postgresql.url("secret"))
    assert "secret" not in refusal.value.message


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_job_without_an_owner_is_reported_as_interrupted(
    kind: str, tmp_path: Path, postgresql_url: str
) -> None:
    url = postgresql_url if kind == "postgresql" else f"sqlite:///{tmp_path}/old.sqlite3"
    with oldest_database(url) as old:
        dates = {"created_at": "a", "updated_at": "b"}
        job = {"id": "job-1", "kind": "extract", "status": "running", "request": "{}", "progress": "{}", **dates}
        fill(old, "jobs", [job])
    store = await open_sql_store(url)
    assert (await store.servers.renew("new", 10, {})).interrupted == 1
    assert (await store.shared.jobs.get("job-1")).status == "failed"
    await store.close()
