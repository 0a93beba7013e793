"""Protocols of the store: vectors, profiles, the default steering, jobs, links. Vector versions are immutable.

Each of these is reached through a namespace: `store.in_namespace("team-a").vectors`. Names are looked up in that namespace,
then in `shared`; a vector of the own namespace hides every version of the shared one. Writing goes to the own namespace.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from steering.errors import StoreCorrupt
from steering.namespaces import SHARED
from steering.spec import SteeringSpec
from steering.store.governance import AuditStore, DocumentStore, KeyStore, OutputStore, ServerStore
from steering.vectors import ConceptVector, VectorSummary


@dataclass(frozen=True, slots=True)
class VectorFilter:
    """Every given field must match. `search` is a literal substring of name or description."""

    tag: str | None = None
    method: str | None = None
    search: str | None = None


@dataclass(frozen=True, slots=True)
class VectorPage:
    """The newest version of each name, ordered by name. `next_cursor` is opaque, None on the last page.

    damaged: ids of vectors of this page that are left out, because what the store has of them cannot be read.
    """

    vectors: tuple[VectorSummary, ...]
    next_cursor: str | None
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Versions of one name, newest first. next_before: the `before` of the next page, None on the last.

    namespace: of all versions of the name that are seen; empty on a page that has none. damaged: as in VectorPage.
    """

    namespace: str
    versions: tuple[VectorSummary, ...]
    next_before: int | None
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Writer:
    """Who stores vectors, profiles and links: the name of a key, and what it may have in the namespace (None: no limit).

    max_bytes: of its vectors, profiles and links together. max_links: number of its links. max_profiles: profiles of the
    namespace, whoever stored them.
    """

    key: str = ""
    max_bytes: int | None = None
    max_links: int | None = None
    max_profiles: int | None = None


UNLIMITED = Writer()
"""Nobody in particular, without a limit."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A named SteeringSpec. namespace and dates: set by the store."""

    name: str
    steering: SteeringSpec
    description: str = ""
    created_at: str = ""
    updated_at: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ProfileName:
    """What a list of names has of a profile."""

    namespace: str
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class ProfilePage:
    """Profiles by name. damaged: names of profiles of this page whose steering cannot be read."""

    profiles: tuple[Profile, ...]
    next_cursor: str | None = None
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job. status: queued | running | succeeded | failed | cancelled. error: {"code", "message"}. namespace: set by the store.

    owner: the id of the server that runs it. created_by: the name of the key that submitted it.
    """

    id: str
    kind: str
    status: str
    request: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    created_at: str = ""
    updated_at: str = ""
    namespace: str = ""
    owner: str = ""
    created_by: str = ""

    @property
    def subject(self) -> str:
        """The name of the vector that it makes or measures; empty where its request names none."""
        name = self.request.get("name") or self.request.get("vector")
        return name if isinstance(name, str) else ""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs without requests and results, newest first. damaged: ids of jobs of this page that cannot be read."""

    jobs: tuple[JobRecord, ...]
    next_cursor: str | None = None
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """A saved state of a view of the playground. state: None in listings, which do not read it.

    size: bytes of the state as JSON. owner: the name of the key that saved it. Both, date and namespace: set by the store.
    """

    id: str
    view: str
    state: Mapping[str, Any] | None
    size: int = 0
    owner: str = ""
    created_at: str = ""
    namespace: str = ""


class VectorSource(Protocol):
    """Looks up vectors by name: all that resolving a spec needs."""

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """Returns the newest or the given version, digest checked. Raises VectorNotFound, StoreCorrupt."""


class VectorStore(VectorSource, Protocol):
    """Immutable versions of named vectors. A version number is never assigned twice, even after a delete."""

    async def put(self, vector: ConceptVector, after: VectorSummary | None = None) -> ConceptVector:
        """Stores the vector as the next version of its name; returns it with version, sha256, created_at and namespace set.

        after: stores it only while this is the newest version of that name that the namespace sees, else raises VectorNotFound
        where there is none, NotNewest where it is another. Raises StorageFull when the writer would have more than `max_bytes`.
        """

    async def find(self, where: VectorFilter, limit: int = 50, cursor: str | None = None) -> VectorPage:
        """Lists the newest version of each visible name. A page has fewer than `limit` where their metadata is large.

        Raises InvalidRequest for a cursor of another listing.
        """

    async def names(self, limit: int | None = None) -> tuple[str, ...]:
        """Returns the visible names in their order, the first `limit` of them. Reads nothing else."""

    async def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> ConceptVector:
        """Changes description and tags of every version, never the directions. None leaves a field unchanged."""

    async def versions(self, name: str, limit: int = 50, before: int | None = None) -> VersionPage:
        """Lists the versions of a name. Raises VectorNotFound for an unknown name.

        before: only numbers below it, which may be none.
        """

    async def namespace_of(self, name: str) -> str:
        """Returns the namespace of the versions of a name that are seen. Raises VectorNotFound."""

    async def delete(
        self, name: str, force: bool = False, version: int | None = None, *, documents_too: bool = True
    ) -> None:
        """Deletes all versions, or one. Raises VectorNotFound, or VectorInUse while a profile, a default or a document names it, unless forced.

        documents_too: whether `force` also applies where a document, such as the policy, names it.
        """


class ProfileStore(Protocol):
    """Profiles, and the default steering of requests that name none.

    Both name vectors that their namespace sees, checked in the transaction that stores them, as a delete checks who names it.
    """

    async def put(self, profile: Profile) -> Profile:
        """Creates or replaces the profile of that name. Raises VectorNotFound, InvalidRequest, and StorageFull beyond the
        writer's `max_profiles` or `max_bytes`."""

    async def get(self, name: str) -> Profile:
        """Returns one profile of the own namespace, else of `shared`. Raises ProfileNotFound."""

    async def find(self, limit: int = 50, cursor: str | None = None) -> ProfilePage:
        """Lists visible profiles, by name. A page has fewer than `limit` where they are large."""

    async def names(self, limit: int | None = None) -> tuple[ProfileName, ...]:
        """Returns the names of visible profiles, damaged ones included, the first `limit` of them. Reads no steering."""

    async def delete(self, name: str) -> None:
        """Deletes a profile. Raises ProfileNotFound."""

    async def default(self) -> SteeringSpec | None:
        """Returns the default steering of this namespace alone, None when none is set."""

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """Sets the default steering; None clears it. Raises VectorNotFound, InvalidRequest."""


class JobStore(Protocol):
    """Job records; they outlive a restart of the server."""

    async def put(self, job: JobRecord) -> JobRecord:
        """Creates or replaces the record of that id, and returns the stored record. A record that has ended stays as it is:
        a job that was reported as interrupted is not reported again by a server that lost its lease."""

    async def get(self, job_id: str) -> JobRecord:
        """Returns one record. Raises JobNotFound."""

    async def find(self, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Lists jobs, newest first. Reads neither requests nor results."""


class LinkStore(Protocol):
    """The links of one namespace. They are made to be shared, so reading needs the id and no namespace."""

    async def put(self, link: Link) -> Link:
        """Stores a link under an id that is not in use. Raises StorageFull when the writer has `max_links`, or would have more than `max_bytes`."""

    async def get(self, link_id: str) -> Link:
        """Returns the link of that id, of any namespace. Raises LinkNotFound."""

    async def find(
        self, owner: str | None, limit: int = 50, cursor: str | None = None
    ) -> tuple[tuple[Link, ...], str | None]:
        """Lists links of this namespace without their states, newest first. owner: None for those of every key."""

    async def delete(self, link_id: str, owner: str | None) -> None:
        """Deletes a link of this namespace. Raises LinkNotFound, also for a link of another owner."""


@dataclass(frozen=True, slots=True)
class NamespaceStore:
    """What a store shows in one namespace. The only access to vectors, profiles, jobs and links, so no query lacks one."""

    namespace: str
    vectors: VectorStore
    profiles: ProfileStore
    jobs: JobStore
    links: LinkStore


class Store(Protocol):
    """Access to one database."""

    keys: KeyStore
    audit: AuditStore
    documents: DocumentStore
    outputs: OutputStore
    servers: ServerStore

    def in_namespace(self, name: str, writer: Writer = UNLIMITED) -> NamespaceStore:
        """Returns the store as it is seen in a namespace, which need not exist yet. Raises InvalidRequest for what is no name."""

    @property
    def shared(self) -> NamespaceStore:
        """The store as it is seen in the namespace `shared`."""
        return self.in_namespace(SHARED)

    async def defaults(self) -> Mapping[str, SteeringSpec | StoreCorrupt]:
        """Returns the default steering of every namespace that has one, or the error of reading it."""

    async def prune_links(self, before: str) -> int:
        """Deletes the links of every namespace that were saved before a time; returns how many."""

    async def ping(self) -> None:
        """Raises StoreUnavailable when the database cannot be reached or was upgraded by a newer server, StoreCorrupt when it
        has other tables."""

    async def close(self) -> None:
        """Waits for running transactions and closes the connections."""
