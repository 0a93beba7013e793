"""Jobs: the long work (extraction, evaluation) that runs on this server.

A job runs on the server that accepted it, its owner. Servers on one database see each other's jobs through their records:
the owner stores progress with each renewal of its lease, and learns then which of its jobs others have cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import structlog
from pydantic import BaseModel

from app.errors import RateLimited
from app.http.errors import public_error
from app.policy.keys import Key
from app.policy.rate_limits import share
from app.settings import Settings
from steering.errors import Interrupted, Overloaded, SteeringError
from steering.schemas.extraction import TransferRequest
from steering.store.base import JobRecord, Store
from steering.workflows.progress import Progress

log = structlog.get_logger(__name__)

Work: TypeAlias = Callable[[Progress], Awaitable[Mapping[str, Any]]]
"""work(progress) -> a result that JSON can represent. Cancelling the awaitable must stop the work."""

FINAL = frozenset({"succeeded", "failed", "cancelled"})
_TEXTS = frozenset({"pairs", "positive", "negative", "describe", "anchors", "prompts", "neutral"})
"""Fields of requests that are texts of the caller, and left out of the record."""


def job_request(body: BaseModel) -> dict[str, Any]:
    """Returns what a job's record stores of a request: the fields given, without the caller's texts and numbers."""
    hidden = set(_TEXTS)
    if isinstance(body, TransferRequest):
        hidden.add("direction")  # a list of numbers; the `direction` of a report is a word
    return body.model_dump(mode="json", exclude=hidden, exclude_unset=True)


@dataclass(slots=True)
class LiveJob:
    """A job of this process: its key, newest record and task, and an event that is set when the record changes."""

    key: str
    record: JobRecord
    task: "asyncio.Task[None] | None" = None
    failure: SteeringError | None = None
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, record: JobRecord) -> None:
        """Sets the record, and wakes everybody who waits for a change."""
        self.record = record
        self.changed.set()
        self.changed = asyncio.Event()


class Jobs:
    """The jobs of one server. Requests use them through `NamespaceJobs`."""

    def __init__(self, store: Store, server: str, settings: Settings) -> None:
        self.store, self._server = store, server
        self._lease_seconds = settings.lease_seconds
        self._slots = asyncio.Semaphore(settings.max_jobs)
        self._limit = settings.max_jobs + settings.max_queued_jobs
        self._live: dict[str, LiveJob] = {}
        self._unsaved: dict[str, JobRecord] = {}
        self.servers = 1
        self._closing = False

    async def renew(self) -> None:
        """Renews the lease of this server, which other servers take for dead without it. Ends jobs that may not go on.

        Raises StoreUnavailable.
        """
        if self._closing:
            return
        live = {name: one for name, one in self._live.items() if not one.ended}
        progress = {name: one.record.progress for name, one in live.items()}
        renewal = await self.store.servers.renew(self._server, self._lease_seconds, progress)
        self.servers = renewal.servers
        if renewal.interrupted:
            log.warning("jobs_interrupted", count=renewal.interrupted)
        for name in renewal.ended:
            task = live[name].task
            if task is not None and not live[name].ended:
                task.cancel()
        await self._save_rest()

    async def _save_rest(self) -> None:
        """Stores the final records that could not be stored when their jobs ended. Raises StoreUnavailable."""
        for name, record in tuple(self._unsaved.items()):
            await self._put(record)
            self._unsaved.pop(name, None)
            self._live.pop(name, None)

    def live(self, job_id: str) -> LiveJob | None:
        """Returns a job of this process that has not ended."""
        return self._live.get(job_id)

    async def submit(self, record: JobRecord, key: Key, work: Work, release: Callable[[], None]) -> LiveJob:
        """Queues a job; `release` is called once, when it has ended or was refused.

        Raises Overloaded when too many are waiting, RateLimited when the key has too many.
        """
        try:
            live = await self._queued(record, key)
        except BaseException:
            release()
            raise
        live.task = asyncio.create_task(self._run(live, work))
        live.task.add_done_callback(lambda _: release())
        return live

    async def _queued(self, record: JobRecord, key: Key) -> LiveJob:
        if self._closing or len(self._live) >= self._limit:
            raise Overloaded(f"{len(self._live)} jobs are running or waiting; wait for one to end")
        limit = None if key.limits.jobs is None else share(key.limits.jobs, self.servers)
        if limit is not None and sum(live.key == key.name for live in self._live.values()) >= limit:
            raise RateLimited(f"this key may have {limit} unfinished jobs here; wait for one to end, or cancel it")
        live = LiveJob(key.name, replace(record, owner=self._server))
        self._live[record.id] = live
        try:
            live.update(await self._put(live.record))
        except BaseException:
            del self._live[live.record.id]
            raise
        return live

    def counts(self) -> dict[str, int]:
        """Returns how many jobs are queued and running."""
        statuses = [live.record.status for live in self._live.values()]
        return {status: statuses.count(status) for status in ("queued", "running")}

    async def close(self) -> None:
        """Interrupts every job; they become `failed` with code `interrupted`. Ends the lease. May be called more than once."""
        self._closing = True
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        try:
            await self._save_rest()
            await self.store.servers.release(self._server)
        except SteeringError as error:  # after the lease other servers report what is left
            log.warning("lease_not_released", code=error.code, jobs=list(self._unsaved))

    async def _put(self, record: JobRecord) -> JobRecord:
        return await self.store.in_namespace(record.namespace).jobs.put(record)

    async def _run(self, live: LiveJob, work: Work) -> None:
        """Runs one job. Every exit writes a final record to memory and to the store."""
        ending: dict[str, Any]
        try:
            async with self._slots:
                live.update(await self._put(replace(live.record, status="running")))
                result = await work(lambda done, total, message: self._progress(live, done, total, message))
                ending = {"status": "succeeded", "result": result}
        except asyncio.CancelledError:  # `close` stops the job with the server; else somebody has cancelled it
            live.failure = Interrupted("the server was stopped before the job ended")
            ending = _failure(live.failure) if self._closing else {"status": "cancelled"}
        except Exception as error:  # the job failed; the log names it
            with structlog.contextvars.bound_contextvars(job=live.record.id, kind=live.record.kind):
                live.failure = public_error(error)
            ending = _failure(live.failure)
        live.ended = True
        record = replace(live.record, **ending)
        try:
            # Shielded: a second cancel must not leave a record with status `running`.
            record = await asyncio.shield(asyncio.ensure_future(self._put(record)))
        except Exception:
            log.exception("job_record_not_stored", job=record.id)
            self._unsaved[record.id] = record
        finally:
            live.update(record)
            if record.id not in self._unsaved:
                self._live.pop(record.id, None)

    @staticmethod
    def _progress(live: LiveJob, done: int, total: int, message: str) -> None:
        live.update(replace(live.record, progress={"done": done, "total": total, "message": message}))


def _failure(error: SteeringError) -> dict[str, Any]:
    return {"status": "failed", "error": {"code": error.code, "message": error.message}}
