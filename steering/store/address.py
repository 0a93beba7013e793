"""How a database is reached: its address, its connections, and what the errors of its drivers mean.
No message repeats a URL, SQL or values: a URL may contain a password, and values are what callers wrote."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from steering.errors import (
    InternalError,
    InvalidRequest,
    SteeringError,
    StorageFull,
    StoreCorrupt,
    StoreUnavailable,
)

_DRIVERS = {"sqlite": "aiosqlite", "postgresql": "psycopg"}
SQLITE_PAGE_BYTES = 4096
CONNECT_SECONDS = 10
WRITES = "steering_writes"
BUSY_TIMEOUT_MS = 15_000
STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 15_000
IDLE_TIMEOUT_MS = 30_000
"""PostgreSQL waits for ever by default, and a server that vanished inside a write would keep the lock of all writers."""
_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
"""A connection whose other end is silent for about 30 s is lost; by default it is after hours. Seconds, and milliseconds."""
_WRITER_LOCK_KEY = 0x737465657269  # key of the advisory lock that serializes writers on PostgreSQL


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where the database is. `page_limit` bounds a SQLite file, in pages of SQLITE_PAGE_BYTES; None leaves it to the disk."""

    url: URL
    page_limit: int | None = None

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database."""
        return Path(self.url.database or "") if self.url.get_backend_name() == "sqlite" else None

    @property
    def sync_url(self) -> URL:
        """The same database through a synchronous driver, for migrations."""
        return self.url.set(drivername="sqlite") if self.file is not None else self.url

    @property
    def engine_options(self) -> dict[str, Any]:
        """Arguments of create_engine, synchronous or not."""
        if self.file is not None:
            return {"hide_parameters": True}
        # Behind a transaction pooler every transaction may get another connection, so prepared statements are off.
        connect = {"prepare_threshold": None, "connect_timeout": CONNECT_SECONDS, **_KEEPALIVES}
        return {"hide_parameters": True, "connect_args": connect}

    @property
    def pool_options(self) -> dict[str, Any]:
        """Arguments of create_engine for a pool that is kept: connections that the server has closed are replaced."""
        return {} if self.file is not None else {"pool_pre_ping": True, "pool_timeout": CONNECT_SECONDS}


def read_address(url: str) -> DatabaseAddress:
    """`sqlite:///file`, with `?max_mb=` if wanted, or `postgresql://...`. Raises InvalidRequest for anything else."""
    try:
        parsed = make_url(url)
        backend, _, driver = parsed.drivername.partition("+")
    except (ArgumentError, ValueError) as error:
        raise InvalidRequest("the store URL cannot be read; expected sqlite:///path/to/file", param="store") from error
    if backend not in _DRIVERS or driver not in ("", _DRIVERS[backend]):
        offered = ", ".join(f"{name} (through {driver})" for name, driver in _DRIVERS.items())
        raise InvalidRequest(f"the store URL asks for {parsed.drivername!r}; offered are {offered}", param="store")
    parsed = parsed.set(drivername=f"{backend}+{_DRIVERS[backend]}")
    return _read_sqlite(parsed) if backend == "sqlite" else DatabaseAddress(parsed)


def check_driver(module: str) -> None:
    """Raises StoreUnavailable when the driver is not installed: PostgreSQL's is not part of every installation."""
    if find_spec(module) is None:
        hint = ": pip install 'psycopg[binary]'" if module == _DRIVERS["postgresql"] else ""
        raise StoreUnavailable(f"this store needs the Python package {module!r}, which is not installed{hint}")


def _read_sqlite(url: URL) -> DatabaseAddress:
    path = url.database or ""
    if not path or ":memory:" in path or path.startswith("file:"):
        raise InvalidRequest(
            "a SQLite store is a file: sqlite:///relative/file or sqlite:////absolute/file; "
            "a store that is not kept is memory://",
            param="store",
        )
    unknown = set(url.query) - {"max_mb"}
    if unknown:
        raise InvalidRequest(f"unknown option {sorted(unknown)} in the store URL; known: max_mb", param="store")
    limit = url.query.get("max_mb")
    if limit is None:
        return DatabaseAddress(url)
    if not (isinstance(limit, str) and limit.isascii() and limit.isdigit() and 0 < int(limit) < 1 << 20):
        raise InvalidRequest("max_mb in the store URL must be a positive number of mebibytes", param="store")
    return DatabaseAddress(url.set(query={}), page_limit=(int(limit) << 20) // SQLITE_PAGE_BYTES)


def prepare(engine: Engine, address: DatabaseAddress) -> None:
    """Configures each new connection and opens every transaction in the mode it needs.
    A SQLite transaction that begins as a reader and then writes ignores busy_timeout, so writers use BEGIN IMMEDIATE."""
    if address.file is not None:

        @event.listens_for(engine, "connect")
        def _connected(connection: Any, _: object) -> None:
            _set_up_sqlite(connection, address.page_limit)

    @event.listens_for(engine, "begin")
    def _began(connection: Connection) -> None:
        writes = bool(connection.get_execution_options().get(WRITES))
        if address.file is not None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
            return
        connection.exec_driver_sql(
            f"SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT_MS}', true), "
            f"set_config('lock_timeout', '{LOCK_TIMEOUT_MS}', true)"
        )
        if writes:  # a reader, which holds up nobody, may pause: a copy of a database waits for its target
            connection.exec_driver_sql(
                f"SELECT set_config('idle_in_transaction_session_timeout', '{IDLE_TIMEOUT_MS}', true), "
                f"pg_advisory_xact_lock({_WRITER_LOCK_KEY})"
            )


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
    """Puts the database in WAL mode. SQLite refuses at once, whatever busy_timeout is, where another connection does so:
    two readers that become writers could deadlock. So a refused connection waits with BEGIN IMMEDIATE and tries again."""
    cursor.execute("PRAGMA journal_mode")
    mode = cursor.fetchone()[0]  # the cursor of the asynchronous driver returns nothing useful from execute
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


@contextmanager
def translated() -> Iterator[None]:
    """Turns errors of the database inside the block into errors of the tree."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise meaning(error) from _without_values(error)


class DatabaseFailure(Exception):
    """What a driver raised, as it may be logged: without the statement and without values."""


def _without_values(error: Exception) -> DatabaseFailure:
    """Returns the cause of an error for the log; of PostgreSQL only codes, because its messages repeat values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    state = getattr(cause, "sqlstate", None)
    text = f"SQLSTATE {state}" if state else "" if isinstance(cause, SQLAlchemyError) else str(cause)
    return DatabaseFailure(f"{type(cause).__name__}: {text}".removesuffix(": ")).with_traceback(error.__traceback__)


_DAMAGED = (StoreCorrupt, "the database file is damaged or is not a database")
_OTHER_TABLES = (StoreCorrupt, "the database does not have the tables this version expects")
_BROKEN_RULE = (InternalError, "the store broke a rule of its own tables")
_DAMAGED_DATA = (StoreCorrupt, "the database reports damaged data")
_SQLITE_CODES: dict[int, tuple[type[SteeringError], str]] = {
    sqlite3.SQLITE_FULL: (StorageFull, "the database is full: its disk or its size limit is used up"),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_FORMAT: _DAMAGED,
    sqlite3.SQLITE_ERROR: _OTHER_TABLES,
    sqlite3.SQLITE_CONSTRAINT: _BROKEN_RULE,
    sqlite3.SQLITE_MISMATCH: _BROKEN_RULE,
    sqlite3.SQLITE_MISUSE: _BROKEN_RULE,
    sqlite3.SQLITE_RANGE: _BROKEN_RULE,
}
"""By primary code; the other bits of a code say more of the cause."""
_SQLSTATES: dict[str, tuple[type[SteeringError], str]] = {
    "53100": (StorageFull, "the database is full"),
    "XX001": _DAMAGED_DATA,
    "XX002": _DAMAGED_DATA,
    "42": _OTHER_TABLES,
    "23": _BROKEN_RULE,
}
"""By the beginning of a code of PostgreSQL."""


def meaning(error: Exception) -> SteeringError:
    """Returns our error for a database error: unavailable, full, corrupt, or an internal error."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        name = getattr(cause, "sqlite_errorname", None)
        other = (StoreUnavailable, "the database file cannot be used now" + (f" ({name})" if name else ""))
        kind, message = _SQLITE_CODES.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF, other)
        return kind(message)
    state = getattr(cause, "sqlstate", None)
    for start, (kind, message) in _SQLSTATES.items():
        if isinstance(state, str) and state.startswith(start):
            return kind(message)
    if isinstance(state, str) or isinstance(error, (DBAPIError, PoolTimeout, OSError)):
        return StoreUnavailable("the database does not answer")
    return InternalError("the store sent the database an invalid statement")
