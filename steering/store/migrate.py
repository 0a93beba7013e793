"""Brings a database to the schema of this code, in one transaction; refuses one that is newer. Synchronous: run in a thread."""

import contextlib
import os
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from steering.errors import InvalidRequest, StoreCorrupt
from steering.store.address import DatabaseAddress, transaction, translated
from steering.store.tables import Base

OWNER_ONLY = 0o600
"""A database has prompts of links, results of jobs and digests of keys."""


@cache
def _known() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def schema_known() -> str | None:
    """Returns the newest schema that this code knows."""
    return _known().get_current_head()


def migrate(address: DatabaseAddress) -> None:
    """Creates or upgrades a database; of two processes, one waits. Raises StoreCorrupt, StoreUnavailable."""
    with translated():
        if address.file is not None:
            address.file.parent.mkdir(parents=True, exist_ok=True)
            create_private(address.file)
        with transaction(address, writes=True) as connection:
            _upgrade(connection)


def create_private(file: Path) -> None:
    """Creates an empty file that only its owner reads, unless it is there. SQLite's `-wal` and `-shm` get the same mode."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY))


def current(address: DatabaseAddress) -> tuple[str | None, str | None]:
    """Returns the schema of a database, None without one, and that of this code. Raises StoreUnavailable."""
    newest = schema_known()
    if address.file is not None and not address.file.exists():
        return None, newest
    with translated():
        engine = create_engine(address.sync_url, poolclass=NullPool, **address.engine_options)
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision(), newest


def check_newest(address: DatabaseAddress, what: str) -> None:
    """Raises InvalidRequest, which names `what`, for what is no database of ours or has another schema than the newest, and StoreUnavailable."""
    found, newest = current(address)
    if found is None:
        raise InvalidRequest(f"the {what} is not a database of this server", param=what)
    if found != newest:
        message = f"the {what} has schema {found}, this version needs {newest}: run `steer db upgrade` on it first"
        raise InvalidRequest(message, param=what)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "steering.store:migrations")
    return config


def _upgrade(connection: Connection) -> None:
    newest = schema_known()
    context = MigrationContext.configure(connection)
    found = context.get_current_revision()
    if found is None:
        Base.metadata.create_all(connection, checkfirst=False)
        context.stamp(_known(), "head")
    elif found != newest:
        known = [script.revision for script in _known().walk_revisions()]
        if found not in known:
            raise StoreCorrupt(
                f"the database has schema {found}, this version knows {known[-1]} to {newest}: "
                "it was written by another version; run that one, or give this one another database"
            )
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
