"""Reserve: disk space beside a SQLite database that is given up when the disk is full, so that deleting still works."""

import contextlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from steering.store.address import PAGE_BYTES

RESERVE_BYTES = 8 << 20
"""A delete needs room in the write-ahead log, and before that the pages in the log, at most 4 MB, need room in the database."""


class Reserve:
    """A file of RESERVE_BYTES next to the database. While it is missing, only what works on a full disk is written.

    Otherwise inserts would use up the space that deletes need.
    """

    def __init__(self, database: Path) -> None:
        self._database, self._file = database, database.with_name(f"{database.name}-reserve")

    @property
    def there(self) -> bool:
        """Returns whether nobody has given the space up."""
        return self._file.exists()

    def take(self) -> bool:
        """Allocates the file unless it is there. Returns False, and leaves nothing, where the disk has no space."""
        if self.there:
            return True
        partial = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            try:
                _allocate(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(self._file)
        except OSError:
            partial.unlink(missing_ok=True)
            return False
        return True

    def give_up(self) -> None:
        """Deletes the file and moves what the write-ahead log has into the database: the log is then written from its start."""
        self._file.unlink(missing_ok=True)
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(self._database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def room_inside(self) -> bool:
        """Returns whether the database has as many free pages as the reserve, so that an insert does not need the disk."""
        with closing(sqlite3.connect(self._database)) as connection:
            free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return free * PAGE_BYTES >= RESERVE_BYTES


def _allocate(descriptor: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    else:
        os.write(descriptor, bytes(RESERVE_BYTES))
