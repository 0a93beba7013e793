"""Copies a whole database to another one, to a backup or from one. Synchronous: run by an operator."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias, get_args

from sqlalchemy import Connection, LargeBinary, Table, delete, func, insert, select, text
from sqlalchemy.engine import URL

from steering.errors import InvalidRequest, StoreCorrupt
from steering.store.address import DatabaseAddress, transaction, translated
from steering.store.database import note_change
from steering.store.migrate import check_newest, create_private, current, migrate
from steering.store.records import Topic
from steering.store.tables import Base, ChangeRow, ServerRow

OF_ONE_DATABASE = {ServerRow.__tablename__, ChangeRow.__tablename__}
"""Tables about the servers that use a database. They are not copied."""
ROWS, ROWS_WITH_BLOBS = 500, 4
"""Rows held in memory at once. A blob has at most 64 MB."""

Report: TypeAlias = Callable[[str, int], None]
"""Called with the name of a table and its number of rows when it has been copied."""


def copy_database(
    source: DatabaseAddress, target: DatabaseAddress, *, replace: bool = False, report: Report = lambda _, __: None
) -> None:
    """Copies one snapshot in one transaction of the target. replace: deletes what the target has. Raises InvalidRequest
    for a source without our newest tables and a target that is the source or not empty; StoreUnavailable,
    StorageFull, StoreCorrupt."""
    check_newest(source, "source")
    if _identity(source) == _identity(target):
        raise InvalidRequest("source and target are the same database", param="target")
    migrate(target)
    with translated(), transaction(source) as reading, transaction(target, writes=True) as writing:
        if replace:
            for table in reversed(copied_tables()):
                writing.execute(delete(table))
        else:
            counts = {one.name: writing.scalar(select(func.count()).select_from(one)) for one in copied_tables()}
            if found := [f"{count} rows in {name}" for name, count in counts.items() if count]:
                message = f"the target is not empty: {', '.join(found)}; replace it or name another"
                raise InvalidRequest(message, param="target")
        for table in copied_tables():
            report(table.name, _copy(table, reading, writing))
        for topic in get_args(Topic):  # servers on the target read again what they hold in memory
            note_change(writing, topic)


def backup(source: DatabaseAddress, file: Path, *, report: Report = lambda _, __: None) -> None:
    """Writes a snapshot to a new file, which appears whole or not at all, and checks its integrity.
    A SQLite database is copied page by page, another one row by row. Raises InvalidRequest when the file exists or the source
    is no database of this server; StoreUnavailable, StorageFull, StoreCorrupt."""
    if file.exists():
        raise InvalidRequest(f"the file {str(file)!r} exists; a backup does not replace one", param="file")
    if current(source)[0] is None:
        raise InvalidRequest("there is no database of this server to back up", param="database")
    partial = file.with_name(f"{file.name}.partial")
    with translated():
        partial.unlink(missing_ok=True)
        create_private(partial)
        try:
            if source.file is not None:
                with closing(sqlite3.connect(source.file)) as reading, closing(sqlite3.connect(partial)) as writing:
                    reading.backup(writing)
            else:
                copy_database(source, address_of(partial), report=report)
            with closing(sqlite3.connect(partial)) as connection:  # one file, without a write-ahead log
                connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            _check_integrity(partial)
            _flush(partial)
            partial.replace(file)
            _flush(file.parent)
        finally:
            for left in (partial, *(partial.with_name(f"{partial.name}-{end}") for end in ("wal", "shm"))):
                left.unlink(missing_ok=True)


def restore(file: Path, target: DatabaseAddress, *, replace: bool = False, report: Report = lambda _, __: None) -> None:
    """Copies a backup into a database, from an older schema too. The file is not changed. See copy_database."""
    if not file.is_file():
        raise InvalidRequest(f"there is no file {str(file)!r}", param="file")
    with tempfile.TemporaryDirectory() as folder, translated():
        copy = Path(folder) / "backup.sqlite3"
        shutil.copyfile(file, copy)
        _check_integrity(copy)
        if current(address_of(copy))[0] is None:
            raise InvalidRequest(f"the file {str(file)!r} is not a backup of this server", param="file")
        migrate(address_of(copy))
        copy_database(address_of(copy), target, replace=replace, report=report)


def copied_tables() -> list[Table]:
    """Returns the tables of the store, those that others refer to first."""
    return [table for table in Base.metadata.sorted_tables if table.name not in OF_ONE_DATABASE]


def address_of(file: Path) -> DatabaseAddress:
    """Returns the address of a SQLite file, whatever characters its path has."""
    return DatabaseAddress(URL.create("sqlite+aiosqlite", database=str(file)))


def _check_integrity(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreCorrupt("the file is damaged: SQLite's integrity check failed")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(address: DatabaseAddress) -> str:
    file = address.file
    return address.url.render_as_string(hide_password=False) if file is None else str(file.resolve())


def _copy(table: Table, source: Connection, target: Connection) -> int:
    """Copies the rows of a table and returns their number. A PostgreSQL sequence continues behind the copied numbers."""
    blobs = any(isinstance(column.type, LargeBinary) for column in table.columns)
    rows = source.execution_options(yield_per=ROWS_WITH_BLOBS if blobs else ROWS).execute(select(table))
    count = 0
    for part in rows.mappings().partitions():
        target.execute(insert(table), [dict(row) for row in part])
        count += len(part)
    column = table.autoincrement_column
    if column is not None and target.dialect.name == "postgresql":
        highest = f"(SELECT max({column.name}) FROM {table.name})"  # noqa: S608 - names of our own tables
        sequence = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
        target.execute(text(f"SELECT setval({sequence}, coalesce({highest}, 1), {highest} IS NOT NULL)"))
    return count
