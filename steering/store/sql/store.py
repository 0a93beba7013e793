"""SqlStore: the Store on SQLite or PostgreSQL."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

from sqlalchemy import delete, select

from steering.errors import InvalidRequest, StoreCorrupt
from steering.spec import SteeringSpec
from steering.store.base import UNLIMITED, NamespaceStore, Store, Writer
from steering.store.formats.serialization import read_steering
from steering.store.sql.address import check_driver, read_address
from steering.store.sql.database import Database
from steering.store.sql.failures import translated
from steering.store.sql.governance import SqlAudit, SqlDocuments, SqlKeys
from steering.store.sql.jobs import SqlJobs, SqlOutputs, SqlServers
from steering.store.sql.links import SqlLinks
from steering.store.sql.migrate import migrate
from steering.store.sql.profiles import SqlProfiles, default_of
from steering.store.sql.reserve import Reserve
from steering.store.sql.tables import DefaultSteeringRow, LinkRow, VectorNameRow
from steering.store.sql.vector_reads import VectorReads
from steering.store.sql.vectors import SqlVectors
from steering.threads import run_in_thread
from steering.vectors import check_name


@final
class SqlStore(Store):
    """The Store on SQLite or PostgreSQL."""

    def __init__(self, database: Database, folder: TemporaryDirectory[str] | None = None) -> None:
        """folder: deleted with the database when the store is closed."""
        self.database, self._folder = database, folder
        self._reads = VectorReads(database)
        self.keys, self.audit, self.documents = SqlKeys(database), SqlAudit(database), SqlDocuments(database)
        self.outputs, self.servers = SqlOutputs(database), SqlServers(database)

    def in_namespace(self, name: str, writer: Writer = UNLIMITED) -> NamespaceStore:
        """See Store.in_namespace."""
        check_name(name, "namespace")
        vectors, links = SqlVectors(self._reads, name, writer), SqlLinks(self.database, name, writer)
        profiles, jobs = SqlProfiles(self.database, name, writer), SqlJobs(self.database, name, writer)
        return NamespaceStore(name, vectors, profiles, jobs, links)

    async def defaults(self) -> Mapping[str, SteeringSpec | StoreCorrupt]:
        """See Store.defaults."""
        rows = await self.database.rows(select(DefaultSteeringRow.namespace, DefaultSteeringRow.steering))
        found = dict[str, SteeringSpec | StoreCorrupt]()
        for row in rows:
            try:
                found[row.namespace] = read_steering(row.steering, default_of(row.namespace))
            except StoreCorrupt as error:
                found[row.namespace] = error
        return found

    async def prune_links(self, before: str) -> int:
        """See Store.prune_links."""
        return await self.database.change(delete(LinkRow).where(LinkRow.created_at < before), when_full=True)

    async def ping(self) -> None:
        """See Store.ping."""
        await self.database.check_schema()
        await self.database.rows(select(VectorNameRow.name).limit(1))

    async def close(self) -> None:
        """See Store.close."""
        try:
            await self.database.close()
        finally:
            if self._folder is not None:
                await run_in_thread(self._folder.cleanup)


async def open_memory_store(url: str) -> SqlStore:
    """Opens the store of the URL `memory://`, which is deleted when it is closed. Raises what `open_temporary_store` raises."""
    if url not in ("memory:", "memory://"):
        raise InvalidRequest("a memory store has no path: its URL is memory://", param="store")
    return await open_temporary_store()


async def open_temporary_store(parent: Path | None = None) -> SqlStore:
    """Opens an empty SQLite database in a folder of its own. A killed process leaves the folder to the system's cleaning.

    parent: where the folder is made; None: where the system has its temporary files. Raises StoreUnavailable where no folder can be made.
    """
    opening = asyncio.ensure_future(_open_in_new_folder(parent))
    try:
        return await asyncio.shield(opening)
    except BaseException:  # who is cancelled waits: its threads make the folder, and write to it, to their end
        (found,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(found, SqlStore):
            await found.close()
        raise


async def _open_in_new_folder(parent: Path | None) -> SqlStore:
    with translated():
        folder = await run_in_thread(lambda: TemporaryDirectory(prefix="steering-store-", dir=parent))
    try:
        return await open_sql_store(f"sqlite:///{folder.name}/store.sqlite3", folder)
    except BaseException:
        await run_in_thread(folder.cleanup)
        raise


async def open_sql_store(url: str, folder: TemporaryDirectory[str] | None = None) -> SqlStore:
    """Migrates, connects and runs one query. folder: see SqlStore. Raises InvalidRequest, StoreUnavailable, StorageFull or StoreCorrupt."""
    address = read_address(url)
    check_driver(address.url.get_driver_name())
    await run_in_thread(migrate, address)
    reserve = None if address.file is None or folder is not None else Reserve(address.file)
    if reserve is not None:
        await run_in_thread(reserve.take)
    store = SqlStore(Database(address, reserve), folder)
    try:
        await store.ping()
    except BaseException:
        await store.close()
        raise
    return store
