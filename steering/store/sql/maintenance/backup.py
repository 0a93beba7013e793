"""Backups: one SQLite file with every row, whatever the database. Both databases may be in use meanwhile."""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL

from steering.errors import InvalidRequest, StoreCorrupt
from steering.store.sql.address import DatabaseAddress
from steering.store.sql.failures import translated
from steering.store.sql.maintenance.copying import Report, copy_database
from steering.store.sql.migrate import create_private, current, migrate


def backup(source: DatabaseAddress, file: Path, *, report: Report = lambda _, __: None) -> None:
    """Writes a snapshot to a new file, which appears whole or not at all, and checks its integrity.

    A SQLite database is copied page by page with its backup interface, another one row by row. Raises InvalidRequest when
    the file exists or the source is no database of this server; StoreUnavailable, StorageFull, StoreCorrupt.
    """
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
            _finish(partial)
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


def address_of(file: Path) -> DatabaseAddress:
    """Returns the address of a SQLite file, whatever characters its path has."""
    return DatabaseAddress(URL.create("sqlite+aiosqlite", database=str(file)))


def _finish(file: Path) -> None:
    """Makes the backup one file without a write-ahead log, checked and on the disk."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    _check_integrity(file)
    _flush(file)


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
