"""Protocols of what belongs to no namespace: API keys, the audit log, named documents such as the policy, outputs of jobs, servers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from steering.namespaces import SHARED

Topic: TypeAlias = Literal["keys", "default_steering", "documents", "jobs"]
"""What servers hold in memory and read again when it changes. jobs: the cancellation of a job was requested."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One API key. digest: SHA-256 of the key in hexadecimal; the key itself is never stored. Dates are ISO 8601, UTC.

    namespace: of the vectors, profiles and jobs that it makes. previous_digest: of the key before its rotation, which is valid until
    previous_until.
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
    previous_digest: str | None = None
    previous_until: str | None = None


KeyEdit: TypeAlias = Callable[[KeyRecord, Sequence[KeyRecord]], Mapping[str, Any] | None]
"""(the key, all others) -> the fields to set, by their names in KeyRecord; None deletes the key. What it raises changes nothing."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an output is: a key by its name, the namespace, and the bytes that the key may have there (None: no limit)."""

    key: str = ""
    namespace: str = SHARED
    max_bytes: int | None = None


NOBODY = Owner()


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
    """API keys. No call stores a whole record that was read before, so what happened to the key meanwhile is kept."""

    async def create(self, key: KeyRecord) -> KeyRecord:
        """Stores a new key and returns it with created_at."""

    async def change(self, key_id: str, fields: Mapping[str, Any]) -> KeyRecord:
        """Sets some fields of a key, by their names in KeyRecord, and returns it as it is now. Raises KeyNotFound."""

    async def all(self) -> tuple[KeyRecord, ...]:
        """Returns every key in the order of creation."""

    async def edit(self, key_id: str, edit: KeyEdit) -> KeyRecord | None:
        """Does to a key what `edit` says of what is stored now, in one transaction; returns it as it is then, None where it was
        deleted. Raises KeyNotFound."""

    async def delete(self, key_id: str) -> None:
        """Deletes a key. Raises KeyNotFound."""

    async def touch(self, used: Mapping[str, str]) -> None:
        """Sets last_used_at by id. Unknown ids are ignored."""


class AuditStore(Protocol):
    """The audit log. Entries are appended and pruned by age, never changed."""

    async def append(self, entry: AuditEntry) -> None:
        """Appends an entry with the current time."""

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[AuditEntry, ...], str | None]:
        """Lists entries, newest first."""

    async def prune(self, before: str) -> int:
        """Deletes entries older than a time; returns how many."""


class DocumentStore(Protocol):
    """Named JSON documents. A text `name@version` in one is a vector of `shared`, which is not deleted while it stands there."""

    async def get(self, name: str) -> Mapping[str, Any] | None:
        """Returns a document, None where there is none."""

    async def put(self, name: str, content: Mapping[str, Any] | None) -> None:
        """Creates or replaces a document; None deletes it. Raises VectorNotFound for a vector that it names."""


class OutputStore(Protocol):
    """Texts in numbered parts, written one after the other and deleted by age."""

    async def append(self, output_id: str, part: int, content: str, owner: Owner = NOBODY) -> None:
        """Stores part `part` (0, 1, ...) of an output with the current time. A part is never changed. Raises StorageFull when
        the owner would have more than it may."""

    async def read(self, output_id: str, part: int) -> str | None:
        """Returns one part, None where there is none."""

    async def prune(self, before: str) -> int:
        """Deletes parts older than a time; returns how many."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal found. ended: jobs of this server that it must stop, because another server requested their
    cancellation or reported them as interrupted. interrupted: unfinished jobs of other servers that were marked now.
    servers: how many have a lease, this one included."""

    ended: frozenset[str] = frozenset()
    interrupted: int = 0
    servers: int = 1


class ServerStore(Protocol):
    """The servers of one database. Lease times are compared with the clock of the database, never with a server's."""

    async def renew(self, server: str, seconds: float, progress: Mapping[str, Mapping[str, Any]]) -> Renewal:
        """Extends the lease of a server and stores the progress of its jobs, by id.

        Unfinished jobs whose owner has no lease, because it died or cannot reach the database, become `failed` with the
        code `interrupted`. Jobs in `progress` that may not go on are returned.
        """

    async def release(self, server: str) -> None:
        """Ends the lease of a server that stops, so that others need not wait for it."""

    async def request_cancel(self, job_id: str) -> None:
        """Asks the owner of an unfinished job to cancel it. A job that has ended or does not exist is unchanged."""

    async def request_cancel_of(self, key: str) -> int:
        """Asks the owners of all unfinished jobs that a key submitted to cancel them; returns how many they are."""

    async def prune_jobs(self, before: str) -> int:
        """Deletes ended jobs that last changed before a time; returns how many."""

    async def changes(self) -> Mapping[str, int]:
        """Returns how often each topic has changed. One small read: servers compare it with the last one."""
