"""Configures database connections: the modes of SQLite, and how a transaction begins on either database."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from steering.errors import StoreUnavailable
from steering.store.address import DatabaseAddress

WRITES = "steering_writes"
BUSY_TIMEOUT_MS = 15_000
STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 15_000
"""PostgreSQL waits for ever by default."""
_WRITER_LOCK_KEY = 0x737465657269  # key of the advisory lock that serializes writers on PostgreSQL


def prepare(engine: Engine, address: DatabaseAddress) -> None:
    """Configures each new connection and opens every transaction in the mode it needs.

    A SQLite transaction that begins as a reader and then writes ignores busy_timeout, so writers use BEGIN IMMEDIATE.
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
        else:
            connection.exec_driver_sql(
                f"SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT_MS}', true), "
                f"set_config('lock_timeout', '{LOCK_TIMEOUT_MS}', true)"
            )
            if writes:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK_KEY})")


@contextmanager
def transaction(address: DatabaseAddress, *, writes: bool = False) -> Iterator[Connection]:
    """Runs one transaction on a connection of its own; a reader sees one snapshot."""
    engine = create_engine(address.sync_url, poolclass=NullPool, **address.engine_options)
    prepare(engine, address)
    options = {} if writes or address.file is not None else {"isolation_level": "REPEATABLE READ"}
    with engine.connect().execution_options(**options, **{WRITES: writes}) as connection, connection.begin():
        yield connection


def _set_up_sqlite(connection: Any, page_limit: int | None) -> None:
    connection.isolation_level = None  # the driver must not begin transactions; the "begin" event does
    with closing(connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
        cursor.execute("PRAGMA foreign_keys = ON")
        if page_limit is not None:
            cursor.execute(f"PRAGMA max_page_count = {page_limit}")


def _write_ahead(cursor: Any) -> None:
    """Puts the database in WAL mode; of two connections doing so at once, one waits for the other.

    SQLite itself does not wait here: it returns SQLITE_BUSY at once whatever busy_timeout is, because two readers that
    become writers could deadlock. So a refused connection waits with BEGIN IMMEDIATE and tries again.
    """
    cursor.execute("PRAGMA journal_mode")
    mode = cursor.fetchone()[0]
    until = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while mode != "wal":
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("ROLLBACK")
            continue
        mode = cursor.fetchone()[0]
        if mode != "wal":
            raise StoreUnavailable(f"SQLite uses journal mode {mode!r} on this disk; the store needs 'wal'")
