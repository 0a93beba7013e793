"""Stores over another store in which a test changes single calls. A call is an attribute: assign what is to be called instead."""

from collections.abc import Callable
from typing import Never

from steering.errors import StoreUnavailable
from steering.namespaces import SHARED
from steering.store.base import UNLIMITED, NamespaceStore, ProfileStore, Store, VectorStore, Writer
from steering.store.governance import DocumentStore, KeyStore, ServerStore


async def fails(*_: object, **__: object) -> Never:
    """Any call of a database that does not answer."""
    raise StoreUnavailable("the database does not answer")


class ChangedStore:
    """A Store over another. `seen` may change what is seen in each namespace, `shared` included."""

    def __init__(self, store: Store, seen: Callable[[NamespaceStore], NamespaceStore] = lambda found: found) -> None:
        self._store, self._seen = store, seen
        self.keys, self.audit, self.documents = store.keys, store.audit, store.documents
        self.outputs, self.servers = store.outputs, store.servers
        self.defaults, self.prune_links = store.defaults, store.prune_links
        self.ping, self.close = store.ping, store.close

    def in_namespace(self, name: str, writer: Writer = UNLIMITED) -> NamespaceStore:
        """See Store.in_namespace."""
        return self._seen(self._store.in_namespace(name, writer))

    @property
    def shared(self) -> NamespaceStore:
        """See Store.shared."""
        return self.in_namespace(SHARED)


def lasting(store: Store) -> ChangedStore:
    """The store for a server whose end does not close it."""

    async def leave_open() -> None:
        """Closes nothing."""

    kept = ChangedStore(store)
    kept.close = leave_open
    return kept


class ChangedVectors:
    """A VectorStore over another."""

    def __init__(self, vectors: VectorStore) -> None:
        self.get, self.put, self.find = vectors.get, vectors.put, vectors.find
        self.describe, self.versions, self.delete = vectors.describe, vectors.versions, vectors.delete
        self.names, self.namespace_of = vectors.names, vectors.namespace_of


class ChangedProfiles:
    """A ProfileStore over another."""

    def __init__(self, profiles: ProfileStore) -> None:
        self.put, self.get, self.delete = profiles.put, profiles.get, profiles.delete
        self.find, self.names = profiles.find, profiles.names
        self.default, self.set_default = profiles.default, profiles.set_default


class ChangedDocuments:
    """A DocumentStore over another."""

    def __init__(self, documents: DocumentStore) -> None:
        self.get, self.put = documents.get, documents.put


class ChangedKeys:
    """A KeyStore over another."""

    def __init__(self, keys: KeyStore) -> None:
        self.create, self.change, self.all = keys.create, keys.change, keys.all
        self.delete, self.touch, self.edit = keys.delete, keys.touch, keys.edit


class ChangedServers:
    """A ServerStore over another."""

    def __init__(self, servers: ServerStore) -> None:
        self.renew, self.release, self.request_cancel = servers.renew, servers.release, servers.request_cancel
        self.prune_jobs, self.changes = servers.prune_jobs, servers.changes
        self.request_cancel_of = servers.request_cancel_of
