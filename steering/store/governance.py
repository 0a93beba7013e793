"""Protocols of what an operator manages in the store: API keys, the audit log, and named documents such as the policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from steering.namespaces import SHARED


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One API key. digest: SHA-256 of the key in hexadecimal; the key itself is never stored. Dates are ISO 8601, UTC.

    namespace: of the vectors, profiles and jobs that it makes.
    """

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    limits: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    expires_at: str | None = None
    last_used_at: str | None = None
    namespace: str = SHARED


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: who did what to which thing. status: of the HTTP response."""

    key: str
    action: str
    target: str
    request_id: str = ""
    status: int = 200
    at: str = ""


class KeyStore(Protocol):
    """API keys."""

    async def put(self, key: KeyRecord) -> KeyRecord:
        """Creates or replaces the key of that id. created_at is set at the first put."""
        ...

    async def all(self) -> tuple[KeyRecord, ...]:
        """Returns every key in the order of creation."""
        ...

    async def delete(self, key_id: str) -> bool:
        """Deletes a key; returns whether it existed."""
        ...

    async def touch(self, used: Mapping[str, str]) -> None:
        """Sets last_used_at by id. Unknown ids are ignored."""
        ...


class AuditStore(Protocol):
    """The audit log. Entries are appended and pruned by age, never changed."""

    async def append(self, entry: AuditEntry) -> None:
        """Appends an entry with the current time."""
        ...

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[AuditEntry, ...], str | None]:
        """Lists entries, newest first."""
        ...

    async def prune(self, before: str) -> int:
        """Deletes entries older than a time; returns how many."""
        ...


class DocumentStore(Protocol):
    """Named JSON documents."""

    async def get(self, name: str) -> Mapping[str, Any] | None:
        """Returns a document, None where there is none."""
        ...

    async def put(self, name: str, content: Mapping[str, Any] | None) -> None:
        """Creates or replaces a document; None deletes it."""
        ...
