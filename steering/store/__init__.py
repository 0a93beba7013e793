"""Stores vectors, profiles, the default steering and job records. STORES maps a URL scheme to what opens a store."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from steering.registry import Registry
from steering.store.base import Store

OpenStore: TypeAlias = Callable[[str], Awaitable[Store]]

# SQLAlchemy and Alembic take most of a second to import, which commands without a store need not wait for.
_SQL = "steering.store.sql.store:open_sql_store"
_MEMORY = "steering.store.sql.store:open_memory_store"
STORES: Registry[OpenStore] = Registry(
    "store", loaders={"sqlite": _SQL, "postgresql": _SQL, "memory": _MEMORY}, param="database"
)


async def open_store(url: str) -> Store:
    """Opens a migrated, connected store: `sqlite:///path/to/file`, `postgresql://...`, or `memory://`, which is deleted when
    it is closed.

    The folder of a SQLite file is created if absent; `?max_mb=` bounds the file. Raises InvalidRequest for a URL that
    cannot be right (without repeating it: it may contain a password), StoreUnavailable when the database cannot be
    reached, StoreCorrupt when it is damaged or its schema is newer than this code.
    """
    scheme = url.partition(":")[0].partition("+")[0]
    return await STORES[scheme](url)
