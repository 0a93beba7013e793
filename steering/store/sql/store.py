"""SqlStore: the Store on SQLite or PostgreSQL."""

from typing import final

from steering.store.base import JobStore, ProfileStore, VectorStore
from steering.store.governance import AuditStore, DocumentStore, KeyStore
from steering.store.sql.address import check_driver, read_address
from steering.store.sql.database import Database
from steering.store.sql.governance import SqlAudit, SqlDocuments, SqlKeys
from steering.store.sql.jobs import SqlJobs
from steering.store.sql.migrate import migrate
from steering.store.sql.profiles import SqlProfiles
from steering.store.sql.vectors import SqlVectors
from steering.threads import run_in_thread


@final
class SqlStore:
    """See `steering.store.base.Store`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.vectors: VectorStore = SqlVectors(database)
        self.profiles: ProfileStore = SqlProfiles(database)
        self.jobs: JobStore = SqlJobs(database)
        self.keys: KeyStore = SqlKeys(database)
        self.audit: AuditStore = SqlAudit(database)
        self.documents: DocumentStore = SqlDocuments(database)

    async def ping(self) -> None:
        """See Store.ping."""
        await self.database.ping()

    async def close(self) -> None:
        """See Store.close."""
        await self.database.close()


async def open_sql_store(url: str) -> SqlStore:
    """Migrates, connects and runs one query. Raises InvalidRequest, StoreUnavailable, StorageFull or StoreCorrupt."""
    address = read_address(url)
    check_driver(address.url.get_driver_name())
    await run_in_thread(migrate, address)
    store = SqlStore(Database(address))
    try:
        await store.ping()
    except BaseException:
        await store.close()
        raise
    return store
