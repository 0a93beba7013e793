"""Databases of the oldest schema that is upgraded: new ones without what its later migrations add."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, text

from steering.store.address import read_address, transaction
from steering.store.migrate import migrate

LATER = {
    "profiles": ("created_by", "size"),
    "jobs": ("created_by", "size"),
    "job_outputs": ("namespace", "created_by", "size"),
    "api_keys": ("previous_digest", "previous_until"),
}
"""Columns that the migrations after 0006 add, by table."""


@contextmanager
def oldest_database(url: str) -> Iterator[Connection]:
    """Makes an empty database of schema 0006; yields a connection to fill it."""
    address = read_address(url)
    migrate(address)
    with transaction(address, writes=True) as connection:
        for table, columns in LATER.items():
            if "created_by" in columns:
                connection.execute(text(f"DROP INDEX ix_{table}_created_by"))
            for column in columns:
                connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0006'"))
        yield connection


def fill(connection: Connection, table: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Inserts rows, each with the same columns."""
    columns = list(rows[0])
    values = ", ".join(f":{column}" for column in columns)
    connection.execute(text(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"), list(map(dict, rows)))
