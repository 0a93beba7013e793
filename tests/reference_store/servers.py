"""ReferenceServers: the ServerStore of the ReferenceStore, over the jobs of the same process."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from steering.store.base import JobRecord
from steering.store.formats.serialization import INTERRUPTED, UNFINISHED, read_record, write_record
from steering.store.governance import Renewal
from steering.store.rules import now

Changes = Counter[str]
"""How often each topic has changed."""


@final
class ReferenceServers:
    """See `steering.store.governance.ServerStore`."""

    def __init__(self, jobs: dict[str, tuple[int, JobRecord]], changes: Changes) -> None:
        self._jobs, self._changes = jobs, changes
        self._leases: dict[str, float] = {}
        self._cancelled: set[str] = set()

    async def renew(self, server: str, seconds: float, progress: Mapping[str, Mapping[str, Any]]) -> Renewal:
        """See ServerStore.renew."""
        self._leases[server] = time.monotonic() + seconds
        self._leases = {one: until for one, until in self._leases.items() if until > time.monotonic()}
        interrupted = 0
        for job_id, job in self._unfinished().items():
            if job.owner not in self._leases:
                self._set(job_id, replace(job, status="failed", error=INTERRUPTED, updated_at=now()))
                interrupted += 1
            elif job.owner == server and progress.get(job_id):
                written = write_record(progress[job_id], "progress")
                self._set(job_id, replace(job, progress=read_record(written, f"job {job_id}") or {}))
        unfinished = self._unfinished()
        rows = self._jobs
        ended = {one for one in progress if one in rows and (one not in unfinished or one in self._cancelled)}
        return Renewal(frozenset(ended), interrupted, len(self._leases))

    async def release(self, server: str) -> None:
        """See ServerStore.release."""
        self._leases.pop(server, None)

    async def request_cancel(self, job_id: str) -> None:
        """See ServerStore.request_cancel."""
        if job_id in self._unfinished():
            self._cancelled.add(job_id)
            self._changes["jobs"] += 1

    async def prune_jobs(self, before: str) -> int:
        """See ServerStore.prune_jobs."""
        rows = self._jobs
        old = [one for one, (_, job) in rows.items() if job.status not in UNFINISHED and job.updated_at < before]
        for job_id in old:
            del rows[job_id]
        self._cancelled.intersection_update(rows)
        return len(old)

    async def changes(self) -> Mapping[str, int]:
        """See ServerStore.changes."""
        return dict(self._changes)

    def _unfinished(self) -> dict[str, JobRecord]:
        return {job_id: job for job_id, (_, job) in self._jobs.items() if job.status in UNFINISHED}

    def _set(self, job_id: str, job: JobRecord) -> None:
        self._jobs[job_id] = (self._jobs[job_id][0], job)
