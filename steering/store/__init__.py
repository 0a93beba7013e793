"""Stores vectors, profiles, the default steering, jobs, links, API keys, the audit log and documents in one SQL database."""

from typing import TYPE_CHECKING

from steering.errors import InvalidRequest

if TYPE_CHECKING:
    from steering.store.store import Store


async def open_store(url: str) -> "Store":
    """Opens a migrated store: `sqlite:///path/to/file` (with `?max_mb=` if wanted), `postgresql://...`, or `memory://`.
    A memory store is deleted when it is closed. Raises InvalidRequest for a URL that cannot be right, without repeating it,
    StoreUnavailable when the database cannot be reached, StoreCorrupt when it is damaged or newer than this code."""
    # SQLAlchemy and Alembic take most of a second to import, which commands without a store need not wait for.
    from steering.store.store import open_sql_store, open_temporary_store  # noqa: PLC0415

    if not url.startswith("memory:"):
        return await open_sql_store(url)
    if url not in ("memory:", "memory://"):
        raise InvalidRequest("a memory store has no path: its URL is memory://", param="store")
    return await open_temporary_store()
