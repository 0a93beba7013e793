"""open_store: from a URL to a store that is migrated, connected and ready."""

from steering.store import STORES
from steering.store.base import Store


async def open_store(url: str) -> Store:
    """`sqlite:///path/to/file` (folder made if absent; `?max_mb=` bounds its size), `postgresql://...`, `memory://`.

    Raises InvalidRequest for a URL that cannot be right (never repeating it: it may hold a password), StoreUnavailable
    when the database cannot be reached, StoreCorrupt when it is damaged or its schema is newer than this code.
    """
    scheme = url.partition(":")[0].partition("+")[0]
    return await STORES[scheme](url)
