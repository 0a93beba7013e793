"""Database: runs transactions on SQLite or PostgreSQL. Readers never wait; writers run one at a time.
Also the pages of listings, and the reserve of disk space that deletes need on a full disk."""

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Row,
    Select,
    UpdateBase,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import InstrumentedAttribute, aliased

from steering.errors import InvalidRequest, LimitExceeded, StorageFull, StoreUnavailable
from steering.namespaces import SHARED
from steering.store.address import SQLITE_PAGE_BYTES, WRITES, DatabaseAddress, prepare, translated
from steering.store.migrate import schema_known
from steering.store.records import Topic
from steering.store.tables import Base, ChangeRow, JobOutputRow, JobRow, LinkRow, ProfileRow, VectorRow
from steering.threads import run_in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")
AnyRow: TypeAlias = Row[*tuple[Any, ...]]
Work: TypeAlias = Callable[[AsyncConnection], Awaitable[T]]
Listing: TypeAlias = Literal["vector", "profile", "job", "link", "audit"]
PAGE_LIMIT = 200
PAGE_BYTES = 4 << 20
"""Stored bytes after which a page of vectors or profiles ends before its limit."""
_CURSOR_LIMIT = 256
RESERVE_BYTES = 8 << 20
"""A delete needs room in the write-ahead log, and before that the pages in the log, at most 4 MB, need room in the database."""


class Reserve:
    """A file of RESERVE_BYTES next to a SQLite database, given up when the disk is full so that deleting still works.
    While it is missing, only what works on a full disk is written: inserts would use up the space that deletes need."""

    def __init__(self, database: Path) -> None:
        self._database, self._file = database, database.with_name(f"{database.name}-reserve")

    @property
    def there(self) -> bool:
        """Whether nobody has given the space up."""
        return self._file.exists()

    def take(self) -> bool:
        """Allocates the file unless it is there. Returns False, and leaves nothing, where the disk has no space."""
        if self.there:
            return True
        partial = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
                else:
                    os.write(descriptor, bytes(RESERVE_BYTES))
            finally:
                os.close(descriptor)
            partial.replace(self._file)
        except OSError:
            partial.unlink(missing_ok=True)
            return False
        return True

    def give_up(self) -> None:
        """Deletes the file and moves the write-ahead log into the database, so that it is written from its start."""
        self._file.unlink(missing_ok=True)
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(self._database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def has_space(self) -> bool:
        """Returns whether the file is there or can be allocated, or the database has as many free pages for an insert."""
        if self.take():
            return True
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return free * SQLITE_PAGE_BYTES >= RESERVE_BYTES


class Database:
    """Runs transactions; each ends in a commit or rollback. A cancelled caller returns at once while its transaction
    runs to its end: a cancelled statement would keep its lock until the connection is garbage-collected."""

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

    async def page(
        self,
        query: Select[*tuple[Any, ...]],
        by: InstrumentedAttribute[Any],
        listing: Listing,
        limit: int,
        cursor: str | None,
    ) -> tuple[Sequence[AnyRow], str | None]:
        """Returns a page, by name up to PAGE_BYTES of column `bytes` or by position, newest first, and the next cursor."""
        newest = by.key == "position"
        page = query.add_columns(by.label("cursor")).order_by(by.desc() if newest else by).limit(check_page(limit) + 1)
        if cursor is not None:
            last = read_cursor(listing, cursor)
            if newest and not (last.isascii() and last.isdigit() and len(last) <= 18):
                raise InvalidRequest("the cursor was not returned by this listing", param="cursor")
            page = page.where(by < int(last) if newest else by > last)
        rows = await self.rows(page)
        kept = rows[: limit if newest else entries_that_fit(row.bytes for row in rows[:limit])]
        return kept, make_cursor(listing, str(kept[-1].cursor)) if len(rows) > len(kept) else None

    async def check_schema(self, connection: AsyncConnection) -> None:
        """Raises StoreUnavailable where a newer server has upgraded the database."""
        schema = await connection.scalar(text("SELECT version_num FROM alembic_version"))
        if schema != self._schema:
            raise StoreUnavailable(
                f"the database has schema {schema}, this server knows {self._schema}: a newer server has upgraded it; "
                "upgrade this one"
            )

    async def read(self, work: Work[T]) -> T:
        """Runs `work` in a read transaction: one snapshot, no waiting for writers."""
        return await self._to_completion(self._transaction(work, writes=False))

    async def write(self, work: Work[T], *, when_full: bool = False) -> T:
        """Runs `work` in a write transaction; returns its result once committed. Writers of all processes take turns.
        when_full: works on a full disk. Raises StoreUnavailable where a newer server has upgraded the database."""
        await self._writer.acquire()

        async def exclusive() -> T:
            try:
                reserve = self._reserve
                if reserve is not None and not (when_full or reserve.there or await run_in_thread(reserve.has_space)):
                    raise StorageFull(
                        "the disk of the database is full: only deleting and changing keys works until it has space again"
                    )
                try:
                    return await self._transaction(work, writes=True)
                except StorageFull:
                    if not when_full or reserve is None or not reserve.there:
                        raise
                log.warning("reserve_given_up")
                await run_in_thread(reserve.give_up)
                return await self._transaction(work, writes=True)
            finally:
                self._writer.release()

        return await self._to_completion(exclusive())

    async def change(self, statement: UpdateBase, *, when_full: bool = False) -> int:
        """Runs one statement in a `write` of its own; returns how many rows it inserted, changed or deleted."""

        async def execute(connection: AsyncConnection) -> int:
            return (await connection.execute(statement)).rowcount

        return await self.write(execute, when_full=when_full)

    async def close(self) -> None:
        """Waits for the transactions that still run."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.engine.dispose()

    async def _transaction(self, work: Work[T], writes: bool) -> T:
        with translated():
            async with self.engine.connect() as connection:
                await connection.execution_options(**{WRITES: writes})
                async with connection.begin():
                    if writes:
                        await self.check_schema(connection)
                    return await work(connection)

    async def _to_completion(self, transaction: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(transaction)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        retrieved(task)


def retrieved(task: asyncio.Task[Any]) -> None:
    """Marks the error of a task as retrieved, because callers that were cancelled never read it."""
    if not task.cancelled():
        task.exception()


def upsert(
    connection: Connection, /, row: type[Base], key: Mapping[str, Any], values: Mapping[str, Any], **first: Any
) -> None:
    """Changes the row of a key, or inserts it with `first` too. Writers are serialized, so no other inserts it meanwhile."""
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


@dataclass(frozen=True, slots=True)
class Writer:
    """Who stores something, by the name of a key, and how much; None: no limit. max_profiles: of the namespace."""

    key: str = ""
    max_bytes: int | None = None
    max_links: int | None = None
    max_profiles: int | None = None


UNLIMITED = Writer()
"""Nobody in particular, without a limit."""


@dataclass(eq=False)
class Stored:
    """What is stored in a database."""

    database: Database


@dataclass(eq=False)
class Namespaced(Stored):
    """What is stored in one namespace, as a writer sees and changes it."""

    namespace: str
    writer: Writer


def seen_from(row: type[VectorRow] | type[ProfileRow], namespace: str) -> ColumnElement[bool]:
    """Selects what a namespace sees: its own rows, and those of `shared` whose names it does not have itself."""
    own = row.namespace == namespace
    if namespace == SHARED:
        return own
    other = aliased(row)
    hidden = exists().where(other.namespace == namespace, other.name == row.name).correlate(row)
    return own | ((row.namespace == SHARED) & ~hidden)


async def check_storage(connection: AsyncConnection, namespace: str, writer: Writer, size: int) -> None:
    """Raises StorageFull when what a writer has in a namespace would take too many bytes with `size` more."""
    if writer.max_bytes is None:
        return
    used = 0
    for row in (VectorRow, ProfileRow, LinkRow, JobRow, JobOutputRow):
        own = (row.namespace == namespace, row.created_by == writer.key)
        used += int(await connection.scalar(select(func.sum(row.size)).where(*own)) or 0)
    if used + size > writer.max_bytes:
        raise StorageFull(
            f"what this key has stored takes {used} bytes and this one takes {size}; the key may store "
            f"{writer.max_bytes}: delete some first",
            param="storage_bytes",
        )


async def check_count(
    connection: AsyncConnection, row: type[Base], own: Iterable[ColumnElement[bool]], limit: int | None, owner: str
) -> None:
    """Raises StorageFull when an owner, a key or a namespace, has as many rows as it may have."""
    count = 0 if limit is None else await connection.scalar(select(func.count()).select_from(row).where(*own)) or 0
    if limit is not None and count >= limit:
        table = row.__tablename__
        message = f"this {owner} has {count} {table}; it may have {limit}: delete some first"
        raise StorageFull(message, param=f"max_{table}")


def make_cursor(listing: Listing, last: str) -> str:
    """Returns the opaque position after the entry `last`."""
    return base64.urlsafe_b64encode(f"{listing}:{last}".encode()).decode()


def read_cursor(listing: Listing, cursor: str) -> str:
    """Returns the last entry of the previous page. Raises InvalidRequest for a cursor of another listing or origin."""
    refusal = InvalidRequest("the cursor was not returned by this listing", param="cursor")
    if len(cursor) > _CURSOR_LIMIT:
        raise refusal
    try:
        kind, _, last = base64.b64decode(cursor.encode("ascii"), b"-_", validate=True).decode().partition(":")
    except (UnicodeError, binascii.Error) as error:
        raise refusal from error
    if kind != listing or not last.isprintable() or make_cursor(listing, last) != cursor:
        raise refusal
    return last


def check_page(limit: int) -> int:
    """Returns the size of a page, 1 to PAGE_LIMIT. Raises InvalidRequest below, LimitExceeded above."""
    if limit < 1:
        raise InvalidRequest(f"limit must be at least 1, got {limit}", param="limit")
    if limit > PAGE_LIMIT:
        raise LimitExceeded(f"limit is {limit}; a page has at most {PAGE_LIMIT} entries", param="limit")
    return limit


def entries_that_fit(sizes: Iterable[int]) -> int:
    """Returns how many entries of these sizes a page has: at least one, and no further one beyond PAGE_BYTES."""
    return max(1, sum(total <= PAGE_BYTES for total in accumulate(sizes)))
