"""STORES, the table of stores by URL scheme. `steering.store.opening.open_store(url)` opens one."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from steering.registry import Registry
from steering.store.base import Store

OpenStore: TypeAlias = Callable[[str], Awaitable[Store]]

STORES: Registry[OpenStore] = Registry(
    "store",
    {
        "sqlite": "steering.store.sql.store:open_sql_store",
        "postgresql": "steering.store.sql.store:open_sql_store",
        "memory": "steering.store.memory:open_memory_store",
    },
)
