"""Database: runs transactions on SQLite or PostgreSQL. Readers never wait; writers run one at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection, Executable, Row, Select, UpdateBase, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import InstrumentedAttribute

from steering.errors import StorageFull, StoreUnavailable
from steering.store.address import DatabaseAddress
from steering.store.connections import WRITES, prepare
from steering.store.failures import translated
from steering.store.migrate import schema_known
from steering.store.pages import Listing, check_page, make_cursor, read_position
from steering.store.records import Topic, Writer
from steering.store.reserve import Reserve
from steering.store.tables import Base, ChangeRow, JobOutputRow, JobRow, LinkRow, ProfileRow, VectorRow
from steering.threads import run_in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")
AnyRow: TypeAlias = Row[*tuple[Any, ...]]


class Database:
    """Runs transactions; each ends in a commit, or in a rollback when its work raises.

    A cancelled caller returns at once while its transaction runs to its end: a statement that is cancelled keeps its
    lock until the connection is garbage-collected.
    """

    def __init__(self, address: DatabaseAddress, reserve: Reserve | None = None) -> None:
        """reserve: of a SQLite file that is kept."""
        self._reserve = reserve
        self.engine = create_async_engine(address.url, **address.engine_options, **address.pool_options)
        prepare(self.engine.sync_engine, address)
        self._schema = schema_known()
        self._writer = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def rows(self, query: Executable) -> Sequence[AnyRow]:
        """Returns all rows of one query, which sees one snapshot and waits for no writer."""

        async def read(connection: AsyncConnection) -> Sequence[AnyRow]:
            return (await connection.execute(query)).all()

        return await self.read(read)

    async def check_schema(self) -> None:
        """Raises StoreUnavailable where a newer server has upgraded the database."""
        await self.read(self._check_schema)

    async def _check_schema(self, connection: AsyncConnection) -> None:
        schema = await connection.scalar(text("SELECT version_num FROM alembic_version"))
        if schema != self._schema:
            raise StoreUnavailable(
                f"the database has schema {schema}, this server knows {self._schema}: a newer server has upgraded it; "
                "upgrade this one"
            )

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Runs `work` in a read transaction: one snapshot, no waiting for writers."""
        return await self._to_completion(self._transaction(work, writes=False))

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]], *, when_full: bool = False) -> T:
        """Runs `work` in a write transaction and returns its result once committed. Writers of all processes take turns.

        when_full: for a delete, or what takes no space, which has to work on a full disk. Raises StoreUnavailable where a newer
        server has upgraded the database: its tables may have other rules.
        """
        await self._writer.acquire()

        async def exclusive() -> T:
            try:
                if when_full:
                    return await self._write_when_full(work)
                await self._require_space()
                return await self._transaction(work, writes=True)
            finally:
                self._writer.release()

        return await self._to_completion(exclusive())

    async def newest(
        self,
        query: Select[*tuple[Any, ...]],
        position: InstrumentedAttribute[int],
        listing: Listing,
        limit: int,
        cursor: str | None,
    ) -> tuple[Sequence[AnyRow], str | None]:
        """Returns a page of rows, newest first, and the cursor of the next page. position: counts the rows of the table."""
        page = query.add_columns(position).order_by(position.desc()).limit(check_page(limit) + 1)
        if cursor is not None:
            page = page.where(position < read_position(listing, cursor))
        rows = await self.rows(page)
        return rows[:limit], make_cursor(listing, str(rows[limit - 1].position)) if len(rows) > limit else None

    async def _write_when_full(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Runs a write transaction, on a full disk in the space of the reserve. Called by `write`."""
        try:
            return await self._transaction(work, writes=True)
        except StorageFull:
            if self._reserve is None or not self._reserve.there:
                raise
            log.warning("reserve_given_up")
            await run_in_thread(self._reserve.give_up)
            return await self._transaction(work, writes=True)

    async def _require_space(self) -> None:
        """Raises StorageFull while the disk has no space for the reserve, unless the database has free pages."""
        if self._reserve is None or self._reserve.there or await run_in_thread(self._reserve.take):
            return
        if not await run_in_thread(self._reserve.room_inside):
            raise StorageFull("the disk of the database is full: only deleting works until it has space again")

    async def change(self, statement: UpdateBase, *, when_full: bool = False) -> int:
        """Runs one statement in a write transaction of its own; returns how many rows it inserted, changed or deleted.

        when_full: see `write`.
        """

        async def execute(connection: AsyncConnection) -> int:
            return (await connection.execute(statement)).rowcount

        return await self.write(execute, when_full=when_full)

    async def close(self) -> None:
        """Waits for the transactions that still run."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.engine.dispose()

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]], writes: bool) -> T:
        with translated():
            async with self.engine.connect() as connection:
                await connection.execution_options(**{WRITES: writes})
                async with connection.begin():
                    if writes:
                        await self._check_schema(connection)
                    return await work(connection)

    async def _to_completion(self, transaction: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(transaction)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it retrieved, because a cancelled caller never reads it


def upsert(
    connection: Connection, /, row: type[Base], key: Mapping[str, Any], values: Mapping[str, Any], **first: Any
) -> None:
    """Changes the row of a key, or inserts it. Writers are serialized, so no other inserts it meanwhile.

    first: values of a row that is inserted, besides or in place of `values`.
    """
    if connection.execute(update(row).filter_by(**key).values(values)).rowcount == 0:
        connection.execute(insert(row).values({**key, **values, **first}))


def exchange(
    connection: Connection, topic: Topic, row: type[Base], key: Mapping[str, Any], values: Mapping[str, Any] | None
) -> None:
    """Replaces the row of a key, or deletes it where `values` is None, and counts a change of the topic."""
    note_change(connection, topic)
    connection.execute(delete(row).filter_by(**key))
    if values is not None:
        connection.execute(insert(row).values({**key, **values}))


def note_change(connection: Connection, topic: Topic) -> None:
    """Counts a change in the transaction that makes it. Writers are serialized, so no count is lost."""
    upsert(connection, ChangeRow, {"topic": topic}, {"count": ChangeRow.count + 1}, count=1)


async def check_storage(connection: AsyncConnection, namespace: str, writer: Writer, size: int) -> None:
    """Raises StorageFull when what a writer has in a namespace would take too many bytes with `size` more."""
    if writer.max_bytes is None:
        return
    used = 0
    for row in (VectorRow, ProfileRow, LinkRow, JobRow, JobOutputRow):
        own = (row.namespace == namespace, row.created_by == writer.key)
        used += await connection.scalar(select(func.sum(row.size)).where(*own)) or 0
    writer.check_bytes(int(used), size)
