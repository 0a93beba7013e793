"""STORES, the table of stores by URL scheme. `steering.store.opening.open_store(url)` opens one."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from steering.registry import Registry
from steering.store.base import Store

OpenStore: TypeAlias = Callable[[str], Awaitable[Store]]


def _sql_store() -> OpenStore:
    from steering.store.sql.store import open_sql_store  # noqa: PLC0415 - brings the database library

    return open_sql_store


def _memory_store() -> OpenStore:
    from steering.store.memory import open_memory_store  # noqa: PLC0415 - brings the vector library

    return open_memory_store


STORES: Registry[OpenStore] = Registry(
    "store",
    loaders={"sqlite": _sql_store, "postgresql": _sql_store, "memory": _memory_store},
    param="database",
)
