"""Databases of earlier schemas, made by the migrations themselves."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from alembic import command
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from steering.store.address import read_address
from steering.store.migrate import _config


@contextmanager
def database_at(url: str, revision: str) -> Iterator[Connection]:
    """Makes an empty database of an earlier revision; yields a connection to fill it."""
    address = read_address(url)
    config = _config()
    engine = create_engine(address.sync_url, poolclass=NullPool, **address.engine_options)
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        yield connection


def fill(connection: Connection, table: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Inserts rows, each with the same columns."""
    columns = list(rows[0])
    values = ", ".join(f":{column}" for column in columns)
    connection.execute(text(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"), list(map(dict, rows)))
