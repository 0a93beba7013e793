"""Where vectors, profiles, the default steering and job records rest. A put makes name@version; nothing rewrites one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from steering.spec import SteeringSpec
from steering.vectors import ConceptVector


@dataclass(frozen=True, slots=True)
class VectorFilter:
    """Every given field must match. `search` looks into name and description, literally: no wildcards."""

    tag: str | None = None
    method: str | None = None
    search: str | None = None


@dataclass(frozen=True, slots=True)
class VectorPage:
    """Newest version of each name, ordered by name; `next_cursor` is opaque, None on the last page."""

    vectors: tuple[ConceptVector, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Profile:
    """A named SteeringSpec kept by the server, strengths included."""

    name: str
    steering: SteeringSpec
    description: str = ""
    created_at: str = ""
    updated_at: str = ""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A long piece of work. status: queued | running | succeeded | failed | cancelled. error: {"code", "message"}."""

    id: str
    kind: str
    status: str
    request: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    created_at: str = ""
    updated_at: str = ""


class VectorSource(Protocol):
    """Where a name becomes a vector: all that resolving needs."""

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """The newest version, or that one, digest checked. Raises VectorNotFound, StoreCorrupt."""
        ...


class VectorStore(VectorSource, Protocol):
    """Immutable versions of named vectors. A version number is never given out twice, even after a delete."""

    async def put(self, vector: ConceptVector) -> ConceptVector:
        """Stores as the next version of its name and returns it with version, sha256 and created_at filled in."""
        ...

    async def find(self, where: VectorFilter, limit: int = 50, cursor: str | None = None) -> VectorPage:
        """Raises InvalidRequest for a cursor it did not give out."""
        ...

    async def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> ConceptVector:
        """Changes what is said about a name (every version), never its numbers. None leaves a field as it is."""
        ...

    async def delete(self, name: str, force: bool = False) -> None:
        """All versions. Raises VectorNotFound; VectorInUse while a profile or the default steering names it, unless forced."""
        ...


class ProfileStore(Protocol):
    """Profiles, and the default steering of requests that name none."""

    async def put(self, profile: Profile) -> Profile: ...

    async def get(self, name: str) -> Profile:
        """Raises ProfileNotFound."""
        ...

    async def all(self) -> tuple[Profile, ...]: ...

    async def delete(self, name: str) -> None:
        """Raises ProfileNotFound."""
        ...

    async def default(self) -> SteeringSpec | None: ...

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """None clears it."""
        ...


class JobStore(Protocol):
    """Records of jobs, so that a restart can say what became of them."""

    async def put(self, job: JobRecord) -> JobRecord:
        """Creates or replaces the record of that id."""
        ...

    async def get(self, job_id: str) -> JobRecord:
        """Raises JobNotFound."""
        ...

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[JobRecord, ...], str | None]:
        """Newest first."""
        ...

    async def interrupt(self) -> int:
        """Marks every queued or running job failed with code `interrupted`; returns how many. Called once at start."""
        ...


class Store(Protocol):
    """One database behind three faces."""

    vectors: VectorStore
    profiles: ProfileStore
    jobs: JobStore

    async def ping(self) -> None:
        """Raises StoreUnavailable when it cannot be reached."""
        ...

    async def close(self) -> None: ...
