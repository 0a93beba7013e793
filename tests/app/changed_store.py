"""Stores in which a test changes single calls."""

import copy
from collections.abc import Callable
from typing import Any, Never, TypeVar

from steering.errors import StoreUnavailable
from steering.store.database import UNLIMITED, Writer
from steering.store.store import NamespaceStore, Store

T = TypeVar("T")


async def fails(*_: object, **__: object) -> Never:
    """Any call of a database that does not answer."""
    raise StoreUnavailable("the database does not answer")


def changed(part: T, **calls: Any) -> T:
    """Returns a copy of a store or of a part of one, such as its vectors, in which other functions are called."""
    twin = copy.copy(part)
    twin.__dict__.update(calls)
    return twin


class ChangedStore(Store):
    """A store over another. seen: changes what is seen in each namespace, `shared` included."""

    def __init__(self, store: Store, seen: Callable[[NamespaceStore], NamespaceStore] = lambda found: found) -> None:
        self.__dict__.update(store.__dict__)
        self._changed, self._seen = store, seen

    def in_namespace(self, name: str, writer: Writer = UNLIMITED) -> NamespaceStore:
        """See Store.in_namespace."""
        return self._seen(self._changed.in_namespace(name, writer))


def lasting(store: Store) -> Store:
    """Returns the store for a server whose end does not close it."""

    async def leave_open() -> None:
        """Closes nothing."""

    return changed(store, close=leave_open)
