"""NamespaceJobs: submits, watches and cancels jobs for one caller, also those that run on another server."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.http.admission import Admission
from app.policy.keys import Key
from app.services.jobs import FINAL, Jobs, LiveJob, Work
from app.services.limits import foreign
from steering.namespaces import SHARED, visible_from
from steering.store.base import JobPage, JobRecord, JobStore, Writer

POLL_SECONDS = 0.5
"""Pause between two reads of a job of another server."""
CANCEL_SECONDS = 5.0
"""How long a cancellation waits for the server that owns the job."""


@dataclass(frozen=True, slots=True)
class NamespaceJobs:
    """The jobs that one caller sees: those of its namespace, and of `shared` its own, an admin all. It makes and cancels jobs of its
    namespace only.

    admission: of the request; a job keeps its memory, because it holds what the request sent.
    """

    jobs: Jobs
    namespace: str
    key: Key
    admission: Admission

    @property
    def _store(self) -> JobStore:
        return self.jobs.store.in_namespace(self.namespace, Writer("" if self._sees_all else self.key.name)).jobs

    @property
    def _sees_all(self) -> bool:
        return "admin" in self.key.scopes

    async def submit(self, kind: str, request: Mapping[str, Any], work: Work) -> JobRecord:
        """Queues a job and returns its record. Raises Overloaded, RateLimited."""
        return (await self._submit(kind, request, work)).record

    async def complete(self, kind: str, request: Mapping[str, Any], work: Work) -> Mapping[str, Any]:
        """Runs a job within the same limits and returns its result. A cancelled caller cancels the job.

        Raises Overloaded, RateLimited, and the error that ended the job: JobCancelled where another caller cancelled it.
        """
        live = await self._submit(kind, request, work)
        try:
            await asyncio.shield(live.task)
        except asyncio.CancelledError:
            live.cancel()
            raise
        return live.result()

    async def get(self, job_id: str) -> JobRecord:
        """Returns the newest record. Raises JobNotFound."""
        live = self._live(job_id)
        return live.record if live is not None else await self._store.get(job_id)

    async def find(self, limit: int, cursor: str | None) -> JobPage:
        """Lists jobs, newest first, running ones with their progress."""
        page = await self._store.find(limit, cursor)
        live = {record.id: self._live(record.id) for record in page.jobs}
        return replace(page, jobs=tuple(one.record if (one := live[r.id]) else r for r in page.jobs))

    async def watch(self, job_id: str) -> AsyncIterator[JobRecord]:
        """Yields the record now and after each change until it is final. A slow watcher may miss steps, never the end."""
        live = self._live(job_id)
        while live is None:
            record = await self._store.get(job_id)
            yield record
            if record.status in FINAL:
                return
            await asyncio.sleep(POLL_SECONDS)
        while True:
            record, changed = live.record, live.changed
            yield record
            if record.status in FINAL:
                return
            await changed.wait()

    async def cancel(self, job_id: str) -> JobRecord:
        """Stops a job and returns its final record; a job that has ended is unchanged. The record is not final yet when the work
        takes longer than CANCEL_SECONDS to end, such as the load of a model.

        Raises JobNotFound, and InsufficientScope for a job of `shared` where that is not the caller's namespace.
        """
        record = await self.get(job_id)
        if record.namespace != self.namespace:
            raise foreign("job", job_id, record.namespace, self.namespace)
        live = self._live(job_id)
        if live is None:
            return await self._cancel_elsewhere(record)
        live.cancel()
        await asyncio.wait({live.task}, timeout=CANCEL_SECONDS)
        return live.record

    async def _cancel_elsewhere(self, record: JobRecord) -> JobRecord:
        """Asks the server that owns a job to cancel it."""
        if record.status not in FINAL:
            await self.jobs.store.servers.request_cancel(record.id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    async for newest in self.watch(record.id):
                        record = newest
        return record

    async def _submit(self, kind: str, request: Mapping[str, Any], work: Work) -> LiveJob:
        job_id = f"job-{secrets.token_hex(8)}"
        record = JobRecord(id=job_id, kind=kind, status="queued", request=request, namespace=self.namespace)
        return await self.jobs.submit(record, self.key, work, self.admission.keep_for_job())

    def _live(self, job_id: str) -> LiveJob | None:
        live = self.jobs.live(job_id)
        if live is None or live.record.namespace not in visible_from(self.namespace):
            return None
        mine = live.record.namespace != SHARED or live.record.created_by == self.key.name
        return live if mine or self._sees_all else None
