"""Jobs: long work (extraction, evaluation) that is submitted, watched and cancelled. Progress is in memory only."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import structlog

from app.errors import RateLimited
from app.http.errors import public_error
from app.policy.keys import Key
from app.services.limits import foreign
from steering.errors import Interrupted, Overloaded, SteeringError
from steering.namespaces import visible_from
from steering.store.base import JobRecord, JobStore, Store

log = structlog.get_logger(__name__)

ReportProgress: TypeAlias = Callable[[int, int, str], None]
Work: TypeAlias = Callable[[ReportProgress], Awaitable[Mapping[str, Any]]]
"""work(progress) -> a result that JSON can represent. Cancelling the awaitable must stop the work."""

FINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(slots=True)
class _Live:
    """A job of this process: its key, newest record and task, and an event that is set when the record changes."""

    key: str
    record: JobRecord
    task: "asyncio.Task[None] | None" = None
    failure: SteeringError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, record: JobRecord) -> None:
        self.record = record
        self.changed.set()
        self.changed = asyncio.Event()


class Jobs:
    """The jobs of one server. Requests use them through `in_namespace`."""

    def __init__(self, store: Store, *, running: int, waiting: int) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(running)
        self._limit = running + waiting
        self._live: dict[str, _Live] = {}
        self._closing = False

    async def start(self) -> None:
        """Marks jobs that an earlier process left unfinished as interrupted."""
        await self._store.interrupt_jobs()

    def in_namespace(self, name: str, key: Key) -> "NamespaceJobs":
        """Returns the jobs that a caller sees and makes."""
        return NamespaceJobs(self, self._store.in_namespace(name).jobs, name, key)

    def live(self, job_id: str) -> _Live | None:
        """Returns a job of this process that has not ended."""
        return self._live.get(job_id)

    async def submit(self, record: JobRecord, key: Key, work: Work) -> _Live:
        """Queues a job. Raises Overloaded when too many are waiting, RateLimited when the key has too many."""
        if self._closing or len(self._live) >= self._limit:
            raise Overloaded(f"{len(self._live)} jobs are running or waiting; wait for one to end")
        limit = key.limits.jobs
        if limit is not None and sum(live.key == key.name for live in self._live.values()) >= limit:
            raise RateLimited(f"this key may have {limit} unfinished jobs; wait for one to end, or cancel it")
        live = _Live(key.name, record)
        self._live[record.id] = live
        try:
            live.update(await self._put(record))
        except BaseException:
            del self._live[live.record.id]
            raise
        live.task = asyncio.create_task(self._run(live, work))
        return live

    def counts(self) -> dict[str, int]:
        """Returns how many jobs are queued and running."""
        statuses = [live.record.status for live in self._live.values()]
        return {status: statuses.count(status) for status in ("queued", "running")}

    async def close(self) -> None:
        """Interrupts every job; they become `failed` with code `interrupted`. May be called more than once."""
        self._closing = True
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _put(self, record: JobRecord) -> JobRecord:
        return await self._store.in_namespace(record.namespace).jobs.put(record)

    async def _run(self, live: _Live, work: Work) -> None:
        """Runs one job. Every exit writes a final record to memory and to the store."""
        ending: dict[str, Any]
        try:
            async with self._slots:
                live.update(await self._put(replace(live.record, status="running")))
                result = await work(lambda done, total, message: self._progress(live, done, total, message))
                ending = {"status": "succeeded", "result": result}
        except asyncio.CancelledError:
            live.failure = Interrupted("the server was stopped before the job ended")
            ending = _failure(live.failure) if self._closing else {"status": "cancelled"}
        except Exception as error:
            with structlog.contextvars.bound_contextvars(job=live.record.id, kind=live.record.kind):
                live.failure = public_error(error)
            ending = _failure(live.failure)
        record = replace(live.record, **ending)
        try:
            # Shielded: a second cancel must not leave a record with status `running`.
            record = await asyncio.shield(asyncio.ensure_future(self._put(record)))
        except Exception:
            log.exception("job_record_lost", job=record.id)
        finally:
            live.update(record)
            self._live.pop(record.id, None)

    @staticmethod
    def _progress(live: _Live, done: int, total: int, message: str) -> None:
        live.update(replace(live.record, progress={"done": done, "total": total, "message": message}))


@dataclass(frozen=True, slots=True)
class NamespaceJobs:
    """The jobs that one caller sees: those of its namespace and of `shared`. It makes and cancels jobs of its namespace only."""

    jobs: Jobs
    store: JobStore
    namespace: str
    key: Key

    async def submit(self, kind: str, request: Mapping[str, Any], work: Work) -> JobRecord:
        """Queues a job and returns its record. Raises Overloaded, RateLimited."""
        return (await self._submit(kind, request, work)).record

    async def complete(self, kind: str, request: Mapping[str, Any], work: Work) -> Mapping[str, Any]:
        """Runs a job within the same limits and returns its result. A cancelled caller cancels the job.

        Raises Overloaded, RateLimited, and the error that ended the job.
        """
        live = await self._submit(kind, request, work)
        assert live.task is not None
        try:
            await asyncio.shield(live.task)
        except asyncio.CancelledError:
            await self.cancel(live.record.id)
            raise
        if live.failure is not None:
            raise live.failure
        return live.record.result or {}

    async def get(self, job_id: str) -> JobRecord:
        """Returns the newest record. Raises JobNotFound."""
        live = self._live(job_id)
        return live.record if live is not None else await self.store.get(job_id)

    async def find(self, limit: int, cursor: str | None) -> tuple[tuple[JobRecord, ...], str | None]:
        """Lists jobs, newest first, running ones with their progress."""
        records, following = await self.store.find(limit, cursor)
        live = [self._live(record.id) for record in records]
        return tuple(r if one is None else one.record for r, one in zip(records, live, strict=True)), following

    async def watch(self, job_id: str) -> AsyncIterator[JobRecord]:
        """Yields the record now and after each change until it is final. A slow watcher may miss steps, never the end."""
        live = self._live(job_id)
        if live is None:
            yield await self.store.get(job_id)
            return
        while True:
            record, changed = live.record, live.changed
            yield record
            if record.status in FINAL:
                return
            await changed.wait()

    async def cancel(self, job_id: str) -> JobRecord:
        """Stops a job and returns its final record; a job that has ended is unchanged.

        Raises JobNotFound, and InsufficientScope for a job of `shared` where that is not the caller's namespace.
        """
        record = await self.get(job_id)
        if record.namespace != self.namespace:
            raise foreign("job", job_id, record.namespace, self.namespace)
        live = self._live(job_id)
        if live is None or live.task is None:
            return record
        live.task.cancel()
        await asyncio.wait({live.task})
        return live.record

    async def _submit(self, kind: str, request: Mapping[str, Any], work: Work) -> _Live:
        job_id = f"job-{secrets.token_hex(8)}"
        record = JobRecord(id=job_id, kind=kind, status="queued", request=request, namespace=self.namespace)
        return await self.jobs.submit(record, self.key, work)

    def _live(self, job_id: str) -> _Live | None:
        live = self.jobs.live(job_id)
        return live if live is not None and live.record.namespace in visible_from(self.namespace) else None


def _failure(error: SteeringError) -> dict[str, Any]:
    return {"status": "failed", "error": {"code": error.code, "message": error.message}}
