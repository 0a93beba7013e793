"""Stores for tests: the SQL store on a new SQLite file, which is a copy of one that was migrated once."""

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from steering.store.address import read_address
from steering.store.migrate import migrate
from steering.store.store import Store, open_sql_store


@cache
def migrated_file() -> bytes:
    """The content of an empty database of the newest schema."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "store.sqlite3"
        migrate(read_address(f"sqlite:///{file}"))
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return file.read_bytes()


async def memory_store(_: object = None) -> Store:
    """Opens an empty store that is deleted when it is closed, as `memory://` is, without running every migration again."""
    folder = TemporaryDirectory(prefix="steering-store-")
    file = Path(folder.name) / "store.sqlite3"
    file.write_bytes(migrated_file())
    return await open_sql_store(f"sqlite:///{file}", folder)
