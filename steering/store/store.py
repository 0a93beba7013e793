"""Store: access to one database, and NamespaceStore: what is seen of it in one namespace."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import delete, select

from steering.errors import StoreCorrupt
from steering.namespaces import SHARED
from steering.spec import SteeringSpec
from steering.store.address import check_driver, read_address, translated
from steering.store.database import UNLIMITED, Database, Reserve, Writer
from steering.store.governance import Audit, Documents, Keys
from steering.store.jobs import Jobs, Outputs, Servers
from steering.store.links import Links
from steering.store.migrate import migrate
from steering.store.profiles import Profiles, read_default
from steering.store.pruning import Aging, older
from steering.store.tables import DefaultSteeringRow, VectorNameRow
from steering.store.vectors import VectorReads, Vectors
from steering.threads import run_in_thread
from steering.vectors import check_name


@dataclass(frozen=True, slots=True)
class NamespaceStore:
    """What a store shows in one namespace: its own names, then those of `shared`. Writing goes to the namespace."""

    namespace: str
    vectors: Vectors
    profiles: Profiles
    jobs: Jobs
    links: Links


class Store:
    """Access to one database, SQLite or PostgreSQL."""

    def __init__(self, database: Database, folder: TemporaryDirectory[str] | None = None) -> None:
        """folder: deleted with the database when the store is closed."""
        self.database, self._folder = database, folder
        self._reads = VectorReads()
        self.keys, self.audit, self.documents = Keys(database), Audit(database), Documents(database)
        self.outputs, self.servers = Outputs(database), Servers(database)

    def in_namespace(self, name: str, writer: Writer = UNLIMITED) -> NamespaceStore:
        """Returns the store as it is seen in a namespace, which need not exist yet. Raises InvalidRequest for what is no name."""
        part = (self.database, check_name(name, "namespace"), writer)
        return NamespaceStore(name, Vectors(*part, self._reads), Profiles(*part), Jobs(*part), Links(*part))

    @property
    def shared(self) -> NamespaceStore:
        """The store as it is seen in the namespace `shared`."""
        return self.in_namespace(SHARED)

    async def defaults(self) -> Mapping[str, SteeringSpec | StoreCorrupt]:
        """Returns the default steering of every namespace that has one, or the error of reading it."""
        rows = await self.database.rows(select(DefaultSteeringRow.namespace, DefaultSteeringRow.steering))
        defaults = dict[str, SteeringSpec | StoreCorrupt]()
        for namespace, text in rows:
            try:
                defaults[namespace] = read_default(namespace, text)
            except StoreCorrupt as error:
                defaults[namespace] = error
        return defaults

    async def prune(self, table: Aging, before: str) -> int:
        """Deletes what `pruning.older` selects, of every namespace; returns how many rows."""
        row, old = older(table, before)
        return await self.database.change(delete(row).where(old), when_full=True)

    async def ping(self) -> None:
        """Raises StoreUnavailable when the database cannot be reached or is newer, StoreCorrupt when it has other tables."""
        await self.database.read(self.database.check_schema)
        await self.database.rows(select(VectorNameRow.name).limit(1))

    async def close(self) -> None:
        """Waits for running transactions and closes the connections."""
        try:
            await self.database.close()
        finally:
            if self._folder is not None:
                await run_in_thread(self._folder.cleanup)


async def open_temporary_store(parent: Path | None = None) -> Store:
    """Opens an empty SQLite database in a new folder, in `parent` or the system's. Raises StoreUnavailable."""
    opening = asyncio.ensure_future(_open_in_new_folder(parent))
    try:
        return await asyncio.shield(opening)
    except BaseException:  # a cancelled caller waits, because the threads still create the folder and write to it
        (opened,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(opened, Store):
            await opened.close()
        raise


async def _open_in_new_folder(parent: Path | None) -> Store:
    with translated():
        folder = await run_in_thread(lambda: TemporaryDirectory(prefix="steering-store-", dir=parent))
    try:
        return await open_sql_store(f"sqlite:///{folder.name}/store.sqlite3", folder)
    except BaseException:
        await run_in_thread(folder.cleanup)
        raise


async def open_sql_store(url: str, folder: TemporaryDirectory[str] | None = None) -> Store:
    """Migrates, connects and runs one query. Raises InvalidRequest, StoreUnavailable, StorageFull or StoreCorrupt."""
    address = read_address(url)
    check_driver(address.url.get_driver_name())
    await run_in_thread(migrate, address)
    reserve = None if address.file is None or folder is not None else Reserve(address.file)
    if reserve is not None:
        await run_in_thread(reserve.take)
    store = Store(Database(address, reserve), folder)
    try:
        await store.ping()
    except BaseException:
        await store.close()
        raise
    return store
