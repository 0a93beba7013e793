"""Store URLs, what a database's own errors mean, and the tables as PostgreSQL would get them."""

import sqlite3
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_mock_engine
from sqlalchemy.exc import InvalidRequestError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import CreateTable

from steering.errors import InternalError, InvalidRequest, StorageFull, StoreCorrupt, StoreUnavailable
from steering.store import open_store
from steering.store.address import check_driver, meaning, read_address, translated
from steering.store.tables import Base

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "store.sqlite3",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=ro&uri=true",
        "sqlite:///x?cache=shared",
        "sqlite:///x?max_mb=0",
        "sqlite:///x?max_mb=-1",
        "sqlite:///x?max_mb=1e9",
        "sqlite:///x?max_mb=1&max_mb=2",
        "sqlite+pysqlite:///x",
        "postgresql+asyncpg://me:secret@host/x",
        "postgresql://me:secret@host:port/x",
        "mysql://me:secret@host/x",
        "memory://somewhere",
        "memory://?secret",
    ],
)
async def test_a_url_that_cannot_be_right_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await open_store(url)
    assert "secret" not in refusal.value.message


def test_a_postgresql_address_goes_through_psycopg_without_prepared_statements() -> None:
    for url in ("postgresql://me:pw@host:5433/steering", "postgresql+psycopg://me:pw@host:5433/steering"):
        address = read_address(url)
        assert address.file is None
        assert address.url.drivername == address.sync_url.drivername == "postgresql+psycopg"
        assert address.url.render_as_string(hide_password=False) == "postgresql+psycopg://me:pw@host:5433/steering"
        assert address.engine_options["connect_args"] == {
            "prepare_threshold": None,
            "connect_timeout": 10,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }


def test_a_driver_that_is_not_installed_is_named() -> None:
    check_driver("aiosqlite")
    with pytest.raises(StoreUnavailable, match="no_such_driver"):
        check_driver("no_such_driver")
    if find_spec("psycopg") is None:
        with pytest.raises(StoreUnavailable, match=r"pip install 'psycopg\[binary\]'"):
            check_driver("psycopg")
    else:
        check_driver("psycopg")


def test_the_driver_of_every_server_database_comes_with_an_extra() -> None:
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(requirement.startswith("psycopg[binary]") for requirement in extras["postgres"])


def test_a_sqlite_address_is_read_for_both_drivers() -> None:
    address = read_address("sqlite:////data/store.sqlite3?max_mb=3")
    assert str(address.file) == "/data/store.sqlite3"
    assert (address.url.drivername, address.sync_url.drivername) == ("sqlite+aiosqlite", "sqlite")
    assert str(address.sync_url) == "sqlite:////data/store.sqlite3"
    assert address.page_limit == 768


def test_the_tables_can_be_made_on_postgresql_and_order_names_by_code_point() -> None:
    dialect = create_mock_engine("postgresql+psycopg://", executor=print).dialect
    made = [str(CreateTable(table).compile(dialect=dialect)) for table in Base.metadata.sorted_tables]
    assert len(made) == 12
    assert sum('name VARCHAR(64) COLLATE "C" NOT NULL' in statement for statement in made) == 3
    assert "content BYTEA NOT NULL" in "".join(made)
    assert "position SERIAL NOT NULL" in "".join(made)


class DriverError(Exception):
    """As a PostgreSQL driver raises it."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("secret query")
        self.sqlstate = sqlstate


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("secret query")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (sqlite_error(sqlite3.SQLITE_FULL), StorageFull),
        (sqlite_error(sqlite3.SQLITE_CORRUPT | 1 << 8), StoreCorrupt),
        (sqlite_error(sqlite3.SQLITE_NOTADB), StoreCorrupt),
        (sqlite_error(sqlite3.SQLITE_ERROR), StoreCorrupt),
        (sqlite_error(sqlite3.SQLITE_BUSY), StoreUnavailable),
        (sqlite_error(sqlite3.SQLITE_IOERR | 3 << 8), StoreUnavailable),
        (sqlite_error(sqlite3.SQLITE_READONLY), StoreUnavailable),
        (sqlite_error(sqlite3.SQLITE_CONSTRAINT | 6 << 8), InternalError),
        (sqlite3.OperationalError("no code"), StoreUnavailable),
        (DriverError("53100"), StorageFull),
        (DriverError("XX001"), StoreCorrupt),
        (DriverError("42P01"), StoreCorrupt),
        (DriverError("57P01"), StoreUnavailable),
        (DriverError("23505"), InternalError),
        (DriverError(None), StoreUnavailable),
    ],
)
def test_errors_of_a_database_become_errors_of_the_tree(cause: Exception, expected: type[Exception]) -> None:
    wrapped: Any = OperationalError("SELECT secret", {}, cause)
    for error in (wrapped, cause) if isinstance(cause, sqlite3.Error) else (wrapped,):
        error_found = meaning(error)
        assert type(error_found) is expected
        assert "secret" not in error_found.message


def test_a_pool_without_a_free_connection_is_unavailable_and_a_misuse_is_our_defect() -> None:
    for error, expected in (
        (PoolTimeout("x"), StoreUnavailable),
        (PermissionError("x"), StoreUnavailable),
        (InvalidRequestError("x"), InternalError),
    ):
        with pytest.raises(expected), translated():
            raise error
