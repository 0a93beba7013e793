"""ReferenceStore: the Store over plain dictionaries, with which databases are compared. It stores the same bytes and texts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from steering.namespaces import SHARED, visible_from
from steering.spec import SteeringSpec, vector_names
from steering.store.base import UNLIMITED, JobRecord, NamespaceStore, Profile, Writer
from steering.store.formats.serialization import (
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
from steering.store.governance import AuditStore, DocumentStore, KeyStore, OutputStore, ServerStore
from steering.store.rules import check_page, make_cursor, now, read_position
from steering.vectors import check_name
from tests.reference_store.governance import ReferenceAudit, ReferenceDocuments, ReferenceKeys, ReferenceOutputs
from tests.reference_store.links import ReferenceLinks
from tests.reference_store.servers import ReferenceServers
from tests.reference_store.vectors import Content, ReferenceVectors


@final
class ReferenceProfiles:
    """See `steering.store.base.ProfileStore`."""

    def __init__(self, content: Content, namespace: str) -> None:
        self._content, self._namespace = content, namespace

    async def put(self, profile: Profile) -> Profile:
        """See ProfileStore.put."""
        check_profile(profile)
        self._content.require(self._namespace, vector_names(profile.steering))
        key = (self._namespace, profile.name)
        before = self._content.profiles.get(key)
        stored = replace(
            profile,
            steering=read_steering(write_steering(profile.steering), "a profile"),
            created_at=before.created_at if before else now(),
            updated_at=now(),
            namespace=self._namespace,
        )
        self._content.profiles[key] = stored
        return stored

    async def get(self, name: str) -> Profile:
        """See ProfileStore.get."""
        check_name(name)
        for namespace in visible_from(self._namespace):
            if (namespace, name) in self._content.profiles:
                return self._content.profiles[namespace, name]
        raise profile_not_found(name)

    async def all(self) -> tuple[tuple[Profile, ...], tuple[str, ...]]:
        """See ProfileStore.all."""
        visible = visible_from(self._namespace)
        names = {name for namespace, name in self._content.profiles if namespace in visible}
        return tuple([await self.get(name) for name in sorted(names)]), ()

    async def delete(self, name: str) -> None:
        """See ProfileStore.delete."""
        if self._content.profiles.pop((self._namespace, check_name(name)), None) is None:
            raise profile_not_found(name)

    async def default(self) -> SteeringSpec | None:
        """See ProfileStore.default."""
        text = self._content.defaults.get(self._namespace)
        return None if text is None else read_steering(text, "the default steering")

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """See ProfileStore.set_default."""
        if steering is not None:
            self._content.require(self._namespace, vector_names(steering))
        self._content.changes["default_steering"] += 1
        if steering is None:
            self._content.defaults.pop(self._namespace, None)
        else:
            self._content.defaults[self._namespace] = write_steering(steering)


@final
class ReferenceJobs:
    """See `steering.store.base.JobStore`."""

    def __init__(self, content: Content, namespace: str) -> None:
        self._content, self._namespace = content, namespace
        self._jobs = content.jobs

    async def put(self, job: JobRecord) -> JobRecord:
        """See JobStore.put."""
        stored = replace(_copied(check_job(job)), created_at=now(), updated_at=now(), namespace=self._namespace)
        position, before = self._jobs.get(job.id, (self._content.last_job + 1, stored))
        if before.namespace != self._namespace:
            raise job_not_found(job.id)
        if job.id not in self._jobs or before.status in UNFINISHED:
            self._jobs[job.id] = (position, replace(stored, created_at=before.created_at))
            self._content.last_job = max(position, self._content.last_job)
        return await self.get(job.id)

    async def get(self, job_id: str) -> JobRecord:
        """See JobStore.get."""
        if job_id not in self._jobs or self._jobs[job_id][1].namespace not in visible_from(self._namespace):
            raise job_not_found(job_id)
        return _copied(self._jobs[job_id][1])

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[JobRecord, ...], str | None]:
        """See JobStore.find."""
        check_page(limit)
        before = self._content.last_job + 1 if cursor is None else read_position("job", cursor)
        visible = visible_from(self._namespace)
        seen = [(position, job) for position, job in reversed(self._jobs.values()) if job.namespace in visible]
        found = [(position, job) for position, job in seen if position < before]
        page = tuple(_copied(job) for _, job in found[:limit])
        return page, make_cursor("job", str(found[limit - 1][0])) if len(found) > limit else None


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
class ReferenceStore:
    """See `steering.store.base.Store`."""

    def __init__(self) -> None:
        self._content = Content()
        changes = self._content.changes
        self.keys: KeyStore = ReferenceKeys(changes)
        self.audit: AuditStore = ReferenceAudit()
        self.outputs: OutputStore = ReferenceOutputs()
        self.documents: DocumentStore = ReferenceDocuments(self._content)
        self.servers: ServerStore = ReferenceServers(self._content.jobs, changes)

    def in_namespace(self, name: str, writer: Writer = UNLIMITED) -> NamespaceStore:
        """See Store.in_namespace."""
        check_name(name, "namespace")
        content = self._content
        vectors, links = ReferenceVectors(content, name, writer), ReferenceLinks(content, name, writer)
        return NamespaceStore(name, vectors, ReferenceProfiles(content, name), ReferenceJobs(content, name), links)

    @property
    def shared(self) -> NamespaceStore:
        """See Store.shared."""
        return self.in_namespace(SHARED)

    async def defaults(self) -> Mapping[str, SteeringSpec]:
        """See Store.defaults."""
        return {name: read_steering(text, "the default steering") for name, text in self._content.defaults.items()}

    async def prune_links(self, before: str) -> int:
        """See Store.prune_links."""
        old = [position for position, link in self._content.links.items() if link.created_at < before]
        for position in old:
            del self._content.links[position]
        return len(old)

    async def ping(self) -> None:
        """See Store.ping."""
        return

    async def close(self) -> None:
        """See Store.close."""
        return
