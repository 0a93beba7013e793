"""Translates database errors to ours: unavailable, full, corrupt, or an internal error."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from steering.errors import InternalError, SteeringError, StorageFull, StoreCorrupt, StoreUnavailable


@contextmanager
def translated() -> Iterator[None]:
    """Turns errors of the database inside the block into errors of the tree. No message carries SQL, a path or an address."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise meaning(error) from _without_values(error)


class DatabaseFailure(Exception):
    """What a driver raised, as it may be logged: without the statement and without values, which callers wrote."""


def _without_values(error: Exception) -> DatabaseFailure:
    """Returns the cause of an error for the log. PostgreSQL repeats values in its messages, so only its codes are kept."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    state = getattr(cause, "sqlstate", None)
    text = f"SQLSTATE {state}" if state else "" if isinstance(cause, SQLAlchemyError) else str(cause)
    return DatabaseFailure(f"{type(cause).__name__}: {text}".removesuffix(": ")).with_traceback(error.__traceback__)


def meaning(error: Exception) -> SteeringError:
    """Returns our error for a database error."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _sqlite_meaning(cause)
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        return _postgresql_meaning(state)
    if isinstance(error, (DBAPIError, PoolTimeout, OSError)):
        return StoreUnavailable("the database does not answer")
    return InternalError("the store sent the database an invalid statement")


def _sqlite_meaning(cause: sqlite3.Error) -> SteeringError:
    match getattr(cause, "sqlite_errorcode", 0) & 0xFF:  # the primary code; the other bits say more of the cause
        case sqlite3.SQLITE_FULL:
            return StorageFull("the database is full: its disk or its size limit is used up")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_FORMAT:
            return StoreCorrupt("the database file is damaged or is not a database")
        case sqlite3.SQLITE_ERROR:
            return StoreCorrupt("the database does not have the tables this version expects")
        case sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_MISMATCH | sqlite3.SQLITE_MISUSE | sqlite3.SQLITE_RANGE:
            return InternalError("the store broke a rule of its own tables")
    name = getattr(cause, "sqlite_errorname", None)
    return StoreUnavailable("the database file cannot be used now" + (f" ({name})" if name else ""))


def _postgresql_meaning(state: str) -> SteeringError:
    if state == "53100":
        return StorageFull("the database is full")
    if state in ("XX001", "XX002"):
        return StoreCorrupt("the database reports damaged data")
    if state.startswith("42"):
        return StoreCorrupt("the database does not have the tables this version expects")
    if state.startswith("23"):
        return InternalError("the store broke a rule of its own tables")
    return StoreUnavailable("the database does not answer")
