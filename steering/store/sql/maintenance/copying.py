"""Copies every row of one database to another: SQLite to PostgreSQL, back, or a backup to either."""

from collections.abc import Callable
from typing import TypeAlias, get_args

from sqlalchemy import Connection, LargeBinary, Table, delete, func, insert, select, text

from steering.errors import InvalidRequest
from steering.store.governance import Topic
from steering.store.sql.address import DatabaseAddress
from steering.store.sql.connections import transaction
from steering.store.sql.database import note_change
from steering.store.sql.failures import translated
from steering.store.sql.migrate import current, migrate
from steering.store.sql.tables import Base, ChangeRow, ServerRow

OF_ONE_DATABASE = {ServerRow.__tablename__, ChangeRow.__tablename__}
"""Tables about the servers that use a database. They are not copied."""
ROWS, ROWS_WITH_BLOBS = 500, 4
"""Rows held in memory at once. A blob has at most 64 MB."""

Report: TypeAlias = Callable[[str, int], None]
"""Called with the name of a table and its number of rows when it has been copied."""


def copy_database(
    source: DatabaseAddress, target: DatabaseAddress, *, replace: bool = False, report: Report = lambda _, __: None
) -> None:
    """Copies one snapshot of the source in one transaction of the target; a failure leaves the target as it was.

    replace: deletes what the target has. Both databases may be in use; what is written to the source afterwards is not
    copied. Raises InvalidRequest for a source without our tables or with an older schema, a target that is the source,
    and one that is not empty; StoreUnavailable, StorageFull, StoreCorrupt.
    """
    _check_source(source)
    if _identity(source) == _identity(target):
        raise InvalidRequest("source and target are the same database", param="target")
    migrate(target)
    with translated(), transaction(source) as reading, transaction(target, writes=True) as writing:
        if replace:
            for table in reversed(copied_tables()):
                writing.execute(delete(table))
        else:
            _check_empty(writing)
        for table in copied_tables():
            report(table.name, _copy(table, reading, writing))
        for topic in get_args(Topic):  # servers on the target read again what they hold in memory
            note_change(writing, topic)


def copied_tables() -> list[Table]:
    """Returns the tables of the store, those that others refer to first."""
    return [table for table in Base.metadata.sorted_tables if table.name not in OF_ONE_DATABASE]


def _check_source(source: DatabaseAddress) -> None:
    found, newest = current(source)
    if found is None:
        raise InvalidRequest("the source is not a database of this server", param="source")
    if found != newest:
        raise InvalidRequest(
            f"the source has schema {found}, this version needs {newest}: run `steer db upgrade` on it first",
            param="source",
        )


def _identity(address: DatabaseAddress) -> str:
    file = address.file
    return address.url.render_as_string(hide_password=False) if file is None else str(file.resolve())


def _check_empty(connection: Connection) -> None:
    counts = {table.name: connection.scalar(select(func.count()).select_from(table)) for table in copied_tables()}
    found = [f"{count} rows in {name}" for name, count in counts.items() if count]
    if found:
        raise InvalidRequest(f"the target is not empty: {', '.join(found)}; replace it or name another", param="target")


def _copy(table: Table, source: Connection, target: Connection) -> int:
    blobs = any(isinstance(column.type, LargeBinary) for column in table.columns)
    found = source.execution_options(yield_per=ROWS_WITH_BLOBS if blobs else ROWS).execute(select(table))
    count = 0
    for rows in found.mappings().partitions():
        target.execute(insert(table), [dict(row) for row in rows])
        count += len(rows)
    _continue_numbering(table, target)
    return count


def _continue_numbering(table: Table, target: Connection) -> None:
    """Sets the sequence of a PostgreSQL table behind the copied numbers; SQLite continues after the highest by itself."""
    column = table.autoincrement_column
    if column is not None and target.dialect.name == "postgresql":
        highest = f"(SELECT max({column.name}) FROM {table.name})"  # noqa: S608 - names of our own tables
        sequence = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
        target.execute(text(f"SELECT setval({sequence}, coalesce({highest}, 1), {highest} IS NOT NULL)"))
