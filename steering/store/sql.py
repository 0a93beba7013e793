"""Database: one async engine and its transactions, on SQLite or PostgreSQL. Readers never wait; one writer at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Executable, event, select
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from steering.errors import StoreUnavailable
from steering.store.address import DatabaseAddress
from steering.store.failures import translated
from steering.store.tables import VectorNameRow

T = TypeVar("T")
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
    """Runs transactions; each ends in a commit, or in a rollback when its work raises.

    A caller who is cancelled leaves at once, and a transaction that had begun goes on to its end without them: a
    statement cut short would keep its lock for as long as the garbage collector pleases.
    """

    def __init__(self, address: DatabaseAddress) -> None:
        self._engine = create_async_engine(address.url, **address.engine_options)
        prepare(self._engine.sync_engine, address)
        self._writer = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def rows(self, query: Executable) -> list[tuple[Any, ...]]:
        """All rows of one query, which sees one state of the database and waits for no writer."""

        async def read(connection: AsyncConnection) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in await connection.execute(query)]

        return await self.read(read)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What `work` returns, which sees one state of the database and waits for no writer."""
        return await self._to_its_end(self._transaction(work, writes=False))

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What `work` returns, once committed. One writer at a time here; other processes wait for it, and it for them."""
        await self._writer.acquire()

        async def alone() -> T:
            try:
                return await self._transaction(work, writes=True)
            finally:
                self._writer.release()

        return await self._to_its_end(alone())

    async def ping(self) -> None:
        """Raises StoreUnavailable, or StoreCorrupt when something answers that is not our database."""
        await self.rows(select(VectorNameRow.name).limit(1))

    async def close(self) -> None:
        """Waits for the transactions that still run."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.dispose()

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]], writes: bool) -> T:
        with translated():
            async with self._engine.connect() as connection:
                await connection.execution_options(**{WRITES: writes})
                async with connection.begin():
                    return await work(connection)

    async def _to_its_end(self, transaction: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(transaction)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen here, should the caller have left; a caller who stayed gets it raised
