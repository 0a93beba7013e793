"""Stores vectors, profiles, the default steering, jobs, links, API keys, the audit log and documents in one SQL database."""

from typing import TYPE_CHECKING

from steering.errors import InvalidRequest

if TYPE_CHECKING:
    from steering.store.store import Store


async def open_store(url: str) -> "Store":
    """Opens a migrated store: `sqlite:///path/to/file` (`?max_mb=`), `postgresql://...`, or `memory://`, deleted when
    closed. Raises InvalidRequest, StoreUnavailable, StoreCorrupt."""
    # SQLAlchemy and Alembic take most of a second to import, which commands without a store need not wait for.
    from steering.store.store import open_sql_store, open_temporary_store  # noqa: PLC0415

    if not url.startswith("memory:"):
        return await open_sql_store(url)
    if url not in ("memory:", "memory://"):
        raise InvalidRequest("a memory store has no path: its URL is memory://", param="store")
    return await open_temporary_store()
