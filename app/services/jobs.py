"""Long work (extraction, evaluation): submit, watch, cancel. Records rest in the store; progress is kept in memory."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import structlog

from app.http.errors import hidden
from steering.errors import Interrupted, Overloaded, SteeringError
from steering.store.base import JobRecord, JobStore

log = structlog.get_logger(__name__)

ReportProgress: TypeAlias = Callable[[int, int, str], None]
Work: TypeAlias = Callable[[ReportProgress], Awaitable[Mapping[str, Any]]]
"""work(progress) -> result, JSON-ready. Cancelling it must stop it."""

FINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(slots=True)
class _Live:
    """A job of this process: its newest record, its task, and an event that is set when the record changes."""

    record: JobRecord
    task: "asyncio.Task[None] | None" = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, record: JobRecord) -> None:
        self.record = record
        self.changed.set()
        self.changed = asyncio.Event()


class Jobs:
    """The jobs of one server."""

    def __init__(self, store: JobStore, *, running: int, waiting: int) -> None:
        self._store = store
        self._places = asyncio.Semaphore(running)
        self._limit = running + waiting
        self._live: dict[str, _Live] = {}
        self._closing = False

    async def start(self) -> None:
        """Says of jobs that an earlier process left behind that they were interrupted."""
        await self._store.interrupt()

    async def submit(self, kind: str, request: Mapping[str, Any], work: Work) -> JobRecord:
        """The record of a new job, queued. Raises Overloaded when too many are waiting."""
        if self._closing or len(self._live) >= self._limit:
            raise Overloaded(f"{len(self._live)} jobs are running or waiting; wait for one to end")
        live = _Live(JobRecord(id=f"job-{secrets.token_hex(8)}", kind=kind, status="queued", request=request))
        self._live[live.record.id] = live
        try:
            live.update(await self._store.put(live.record))
        except BaseException:
            del self._live[live.record.id]
            raise
        live.task = asyncio.create_task(self._run(live, work))
        return live.record

    async def get(self, job_id: str) -> JobRecord:
        """The newest record. Raises JobNotFound."""
        live = self._live.get(job_id)
        return live.record if live is not None else await self._store.get(job_id)

    async def find(self, limit: int, cursor: str | None) -> tuple[tuple[JobRecord, ...], str | None]:
        """Newest first, live ones with their progress."""
        records, following = await self._store.find(limit, cursor)
        live = self._live
        return tuple(live[r.id].record if r.id in live else r for r in records), following

    async def watch(self, job_id: str) -> AsyncIterator[JobRecord]:
        """The record now and after each change, until it is final. A slow watcher misses steps, never the end."""
        live = self._live.get(job_id)
        if live is None:
            yield await self._store.get(job_id)
            return
        while True:
            record, changed = live.record, live.changed
            yield record
            if record.status in FINAL:
                return
            await changed.wait()

    async def cancel(self, job_id: str) -> JobRecord:
        """Stops it and returns its final record; a job that has ended stays as it is. Raises JobNotFound."""
        live = self._live.get(job_id)
        if live is None or live.task is None:
            return await self.get(job_id)
        live.task.cancel()
        await asyncio.wait({live.task})
        return live.record

    async def close(self) -> None:
        """Interrupts every job; they read `failed` with code `interrupted`. Harmless when repeated."""
        self._closing = True
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, live: _Live, work: Work) -> None:
        """The life of one job. Every way out leaves a final record, in memory and in the store."""
        ending: dict[str, Any]
        try:
            async with self._places:
                live.update(await self._store.put(replace(live.record, status="running")))
                result = await work(lambda done, total, message: self._progress(live, done, total, message))
                ending = {"status": "succeeded", "result": result}
        except asyncio.CancelledError:
            interrupted = Interrupted("the server was stopped before the job ended")
            ending = _failure(interrupted) if self._closing else {"status": "cancelled"}
        except Exception as error:
            if not isinstance(error, SteeringError):
                log.exception("job_failed", job=live.record.id, kind=live.record.kind)
            ending = _failure(hidden(error))
        record = replace(live.record, **ending)
        try:
            # Shielded: a second cancel must not leave a record that says `running` for ever.
            record = await asyncio.shield(asyncio.ensure_future(self._store.put(record)))
        except Exception:
            log.exception("job_record_lost", job=record.id)
        finally:
            live.update(record)
            self._live.pop(record.id, None)

    @staticmethod
    def _progress(live: _Live, done: int, total: int, message: str) -> None:
        live.update(replace(live.record, progress={"done": done, "total": total, "message": message}))


def _failure(error: SteeringError) -> dict[str, Any]:
    return {"status": "failed", "error": {"code": error.code, "message": error.message}}
