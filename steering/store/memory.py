"""MemoryStore: the in-process store for tests and examples. It stores the same bytes and texts as a database."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from cachetools import LRUCache

from steering.errors import InvalidRequest
from steering.spec import SteeringSpec
from steering.store.base import JobRecord, JobStore, Profile, ProfileStore, VectorFilter, VectorPage, VectorStore
from steering.store.formats.serialization import (
    INTERRUPTED,
    UNFINISHED,
    check_job,
    check_profile,
    job_not_found,
    profile_not_found,
    read_record,
    read_steering,
    write_record,
    write_steering,
)
from steering.store.formats.stored_vector import DECODED_VECTORS, StoredVector, deserialize, not_found, serialize
from steering.store.governance import AuditStore, DocumentStore, KeyStore
from steering.store.memory_governance import MemoryAudit, MemoryDocuments, MemoryKeys
from steering.store.rules import (
    DESCRIPTION_LIMIT,
    check_filter,
    check_page,
    check_tags,
    check_text,
    make_cursor,
    now,
    read_cursor,
    read_position,
    refuse_if_used,
)
from steering.vectors import ConceptVector, check_name


@final
class MemoryProfiles:
    """See `steering.store.base.ProfileStore`."""

    def __init__(self) -> None:
        self._profiles: dict[str, Profile] = {}
        self._default: str | None = None

    async def put(self, profile: Profile) -> Profile:
        """See ProfileStore.put."""
        check_profile(profile)
        before = self._profiles.get(profile.name)
        steering = read_steering(write_steering(profile.steering), "a profile")
        stored = replace(
            profile, steering=steering, created_at=before.created_at if before else now(), updated_at=now()
        )
        self._profiles[profile.name] = stored
        return stored

    async def get(self, name: str) -> Profile:
        """See ProfileStore.get."""
        if check_name(name) not in self._profiles:
            raise profile_not_found(name)
        return self._profiles[name]

    async def all(self) -> tuple[Profile, ...]:
        """See ProfileStore.all."""
        return tuple(self._profiles[name] for name in sorted(self._profiles))

    async def delete(self, name: str) -> None:
        """See ProfileStore.delete."""
        if check_name(name) not in self._profiles:
            raise profile_not_found(name)
        del self._profiles[name]

    async def default(self) -> SteeringSpec | None:
        """See ProfileStore.default."""
        return None if self._default is None else read_steering(self._default, "the default steering")

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """See ProfileStore.set_default."""
        self._default = None if steering is None else write_steering(steering)


@final
class MemoryVectors:
    """See `steering.store.base.VectorStore`."""

    def __init__(self, profiles: MemoryProfiles) -> None:
        self._profiles = profiles
        self._versions: dict[str, dict[int, StoredVector]] = {}
        self._last: dict[str, int] = {}
        self._decoded: LRUCache[StoredVector, ConceptVector] = LRUCache(DECODED_VECTORS)

    def _decode(self, stored: StoredVector) -> ConceptVector:
        vector = self._decoded.get(stored)
        if vector is None:
            vector = self._decoded[stored] = deserialize(stored)
        return vector

    async def put(self, vector: ConceptVector) -> ConceptVector:
        """See VectorStore.put."""
        serialized = serialize(vector)
        version = self._last.get(serialized.name, 0) + 1
        stored = replace(serialized, version=version, created_at=now())
        self._last[stored.name] = version
        self._versions.setdefault(stored.name, {})[version] = stored
        return self._decode(stored)

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorStore.get."""
        versions = self._versions.get(check_name(name), {})
        stored = versions.get(max(versions, default=0) if version is None else version)
        if stored is None:
            raise not_found(name, version)
        return self._decode(stored)

    async def find(self, where: VectorFilter, limit: int = 50, cursor: str | None = None) -> VectorPage:
        """See VectorStore.find."""
        check_filter(where)
        check_page(limit)
        after = "" if cursor is None else read_cursor("vector", cursor)
        newest = (self._versions[name][max(self._versions[name])] for name in sorted(self._versions) if name > after)
        found = [stored for stored in newest if stored.matches(where)]
        page = tuple(self._decode(stored) for stored in found[:limit])
        return VectorPage(page, make_cursor("vector", page[-1].name) if len(found) > limit else None)

    async def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> ConceptVector:
        """See VectorStore.describe."""
        check_name(name)
        if description is not None:
            check_text(description, "description", DESCRIPTION_LIMIT)
        if tags is not None:
            check_tags(tags)
        for version, stored in self._versions.get(name, {}).items():
            self._versions[name][version] = replace(
                stored,
                description=stored.description if description is None else description,
                tags=stored.tags if tags is None else tags,
            )
        return await self.get(name)

    async def versions(self, name: str, limit: int = 50, before: int | None = None) -> tuple[int, ...]:
        """See VectorStore.versions."""
        found = self._versions.get(check_name(name), {})
        check_page(limit)
        if not found and before is None:
            raise not_found(name, None)
        return tuple(sorted((one for one in found if before is None or one < before), reverse=True)[:limit])

    async def delete(self, name: str, force: bool = False, version: int | None = None) -> None:
        """See VectorStore.delete."""
        found = self._versions.get(check_name(name), {})
        if not force:
            profiles = {profile.name: profile.steering for profile in await self._profiles.all()}
            only = len(found) == 1
            refuse_if_used(name, profiles, await self._profiles.default(), version, only=only)
        if not found or (version is not None and version not in found):
            raise not_found(name, version)
        if version is None or len(found) == 1:
            del self._versions[name]
        else:
            del found[version]


@final
class MemoryJobs:
    """See `steering.store.base.JobStore`. Insertion order is the order of creation."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[int, JobRecord]] = {}

    async def put(self, job: JobRecord) -> JobRecord:
        """See JobStore.put."""
        stored = replace(_copied(check_job(job)), created_at=now(), updated_at=now())
        position, before = self._jobs.get(job.id, (len(self._jobs) + 1, stored))
        self._jobs[job.id] = (position, replace(stored, created_at=before.created_at))
        return await self.get(job.id)

    async def get(self, job_id: str) -> JobRecord:
        """See JobStore.get."""
        if job_id not in self._jobs:
            raise job_not_found(job_id)
        return _copied(self._jobs[job_id][1])

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[JobRecord, ...], str | None]:
        """See JobStore.find."""
        check_page(limit)
        before = len(self._jobs) + 1 if cursor is None else read_position("job", cursor)
        found = [(position, job) for position, job in reversed(self._jobs.values()) if position < before]
        page = tuple(_copied(job) for _, job in found[:limit])
        return page, make_cursor("job", str(found[limit - 1][0])) if len(found) > limit else None

    async def interrupt(self) -> int:
        """See JobStore.interrupt."""
        cut = [(job_id, entry) for job_id, entry in self._jobs.items() if entry[1].status in UNFINISHED]
        for job_id, (position, job) in cut:
            self._jobs[job_id] = (position, replace(job, status="failed", error=INTERRUPTED, updated_at=now()))
        return len(cut)


def _copied(job: JobRecord) -> JobRecord:
    """Copies through JSON, so that callers share no mapping with the store and what no database takes is refused."""

    def copied(value: Mapping[str, Any] | None, param: str) -> dict[str, Any] | None:
        return read_record(write_record(value, param), f"job {job.id}")

    return replace(
        job,
        request=copied(job.request, "request") or {},
        progress=copied(job.progress, "progress") or {},
        result=copied(job.result, "result"),
        error=copied(job.error, "error"),
    )


@final
class MemoryStore:
    """See `steering.store.base.Store`. Its content is lost when the process ends."""

    def __init__(self) -> None:
        profiles = MemoryProfiles()
        self.vectors: VectorStore = MemoryVectors(profiles)
        self.profiles: ProfileStore = profiles
        self.jobs: JobStore = MemoryJobs()
        self.keys: KeyStore = MemoryKeys()
        self.audit: AuditStore = MemoryAudit()
        self.documents: DocumentStore = MemoryDocuments()

    async def ping(self) -> None:
        """See Store.ping."""
        return

    async def close(self) -> None:
        """See Store.close."""
        return


async def open_memory_store(url: str) -> MemoryStore:
    """Opens a new, empty store for `memory://`. Raises InvalidRequest for a URL with anything else in it."""
    if url not in ("memory:", "memory://"):
        raise InvalidRequest("a memory store has no path: its URL is memory://", param="store")
    return MemoryStore()
