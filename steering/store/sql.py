"""Database: one async engine and its transactions, on SQLite or PostgreSQL. Readers never wait; one writer at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event, select
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from steering.errors import StoreUnavailable
from steering.store.address import DatabaseAddress
from steering.store.failures import translated
from steering.store.tables import VectorNameRow

WRITES = "steering_writes"
BUSY_TIMEOUT_MS = 30_000
_WRITER_LOCK_KEY = 0x737465657269  # any number of our own: the advisory lock that makes PostgreSQL know one writer too


def prepare(engine: Engine, address: DatabaseAddress) -> None:
    """Sets connections up as they are made and opens every transaction in the mode its purpose asks for.

    A transaction that begins as a reader and then writes ignores busy_timeout, so writers say so at once.
    """
    if address.file is not None:

        @event.listens_for(engine, "connect")
        def _connected(connection: Any, _: object) -> None:
            _set_up_sqlite(connection, address.page_limit)

    @event.listens_for(engine, "begin")
    def _began(connection: Connection) -> None:
        writes = bool(connection.get_execution_options().get(WRITES))
        if address.file is not None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        elif writes:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK_KEY})")


def _set_up_sqlite(connection: Any, page_limit: int | None) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; the "begin" event does
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone()[0] != "wal":
            cursor.execute("PRAGMA journal_mode = WAL")
            mode = cursor.fetchone()[0]
            if mode != "wal":
                raise StoreUnavailable(f"SQLite keeps journal mode {mode!r} on this disk; the store needs 'wal'")
        cursor.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
        cursor.execute("PRAGMA foreign_keys = ON")
        if page_limit is not None:
            cursor.execute(f"PRAGMA max_page_count = {page_limit}")
    finally:
        cursor.close()


class Database:
    """Hands out transactions; each ends in a commit, or in a rollback when its block raises or is cancelled."""

    def __init__(self, address: DatabaseAddress) -> None:
        self.engine = create_async_engine(address.url, **address.engine_options)
        prepare(self.engine.sync_engine, address)
        self._writer = asyncio.Lock()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the database and changes nothing."""
        with translated():
            async with self.engine.connect() as connection, connection.begin():
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """The one writing transaction of this process. Other processes wait for it, and it for them."""
        async with self._writer:
            with translated():
                async with self.engine.connect() as connection:
                    await connection.execution_options(**{WRITES: True})
                    async with connection.begin():
                        yield connection

    async def ping(self) -> None:
        """Raises StoreUnavailable, or StoreCorrupt when something answers that is not our database."""
        async with self.read() as connection:
            await connection.execute(select(VectorNameRow.name).limit(1))

    async def close(self) -> None:
        await self.engine.dispose()
