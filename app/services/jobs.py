"""Jobs: the long work (extraction, evaluation) that runs on this server.

A job runs on the server that accepted it, its owner. Servers on one database see each other's jobs through their records:
the owner stores progress with each renewal of its lease, and learns then which of its jobs others have cancelled.

The task of a job stores all its records, the first included, and is never cancelled: ending a job early cancels its work.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import structlog
from pydantic import BaseModel

from app.errors import JobCancelled, RateLimited
from app.http.errors import public_error
from app.policy.keys import Key
from app.policy.rate_limits import share
from app.settings import Settings
from steering.errors import Interrupted, Overloaded, SteeringError
from steering.schemas.extraction import TransferRequest
from steering.store.base import UNLIMITED, JobRecord, Store, Writer
from steering.workflows.progress import Progress

log = structlog.get_logger(__name__)

T = TypeVar("T")
Work: TypeAlias = Callable[[Progress], Awaitable[Mapping[str, Any]]]
"""work(progress) -> a result that JSON can represent. Cancelling the awaitable must stop the work."""

CLOSE_SECONDS = 2.0
"""How long a server that stops waits for its jobs. What takes longer, such as the load of a model, is reported as interrupted."""
FINAL = frozenset({"succeeded", "failed", "cancelled"})
_TEXTS = frozenset({"pairs", "positive", "negative", "describe", "anchors", "prompts", "neutral"})
"""Fields of requests that are texts of the caller, and left out of the record."""


def job_request(body: BaseModel) -> dict[str, Any]:
    """Returns what a job's record stores of a request: the fields given, without the caller's texts and numbers."""
    hidden = set(_TEXTS)
    if isinstance(body, TransferRequest):
        hidden.add("direction")  # a list of numbers; the `direction` of a report is a word
    return body.model_dump(mode="json", exclude=hidden, exclude_unset=True)


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job of this process: who submitted it, its newest record and task.

    stored: done once the first record is stored, or with the error that prevented it. failure: what the work raised.
    changed: is set when the record changes.
    """

    writer: Writer
    record: JobRecord
    task: "asyncio.Task[None]" = field(init=False)
    stored: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    failure: SteeringError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _reason: SteeringError | None = None
    _awaited: "asyncio.Future[Any] | None" = None

    def update(self, record: JobRecord) -> None:
        """Sets the record, and wakes everybody who waits for a change."""
        self.record = record
        self.changed.set()
        self.changed = asyncio.Event()

    def cancel(self) -> None:
        """Ends the job for a caller who no longer wants it; one that has ended or was stopped before is unchanged."""
        self.stop(JobCancelled("the job was cancelled before it ended"))

    def stop(self, reason: SteeringError) -> None:
        """Ends the work, also work that has not begun, but no write of a record. The first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._awaited is not None:
                self._awaited.cancel()

    async def stoppable(self, work: Awaitable[T]) -> T:
        """Awaits what `stop` may cancel. Raises the reason of the stop."""
        awaited: asyncio.Future[T] = asyncio.ensure_future(work)
        self._awaited = awaited
        if self._reason is not None:
            awaited.cancel()
        try:
            return await awaited
        except asyncio.CancelledError:
            raise self._reason or JobCancelled("the work was cancelled") from None

    def result(self) -> Mapping[str, Any]:
        """Returns the result of a job that has ended, as its record says. Raises the error that ended it."""
        match self.record.status:
            case "succeeded":
                return self.record.result or {}
            case "cancelled":
                raise JobCancelled("the job was cancelled before it ended")
        error = self.record.error or {}
        if self.failure is not None and self.failure.code == error.get("code"):
            raise self.failure
        raise Interrupted(str(error.get("message")))  # what other servers report of a server without a lease


class Jobs:
    """The jobs of one server. Requests use them through `NamespaceJobs`."""

    def __init__(self, store: Store, server: str, settings: Settings, close_seconds: float = CLOSE_SECONDS) -> None:
        self.store, self._server = store, server
        self._lease_seconds, self._close_seconds = settings.lease_seconds, close_seconds
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
        live = dict(self._live)
        progress = {name: one.record.progress for name, one in live.items()}
        renewal = await self.store.servers.renew(self._server, self._lease_seconds, progress)
        self.servers = renewal.servers
        if renewal.interrupted:
            log.warning("jobs_interrupted", count=renewal.interrupted)
        for name in renewal.ended:
            live[name].cancel()
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
            self._check_limits(key)
        except SteeringError:
            release()
            raise
        live = self._live[record.id] = LiveJob(
            Writer(key.name, key.limits.storage_bytes), replace(record, owner=self._server, created_by=key.name)
        )
        live.task = asyncio.create_task(self._run(live, work))
        live.task.add_done_callback(lambda _: release())
        try:
            await asyncio.shield(live.stored)
        except asyncio.CancelledError:  # nobody learns the id of this job
            live.cancel()
            raise
        return live

    def _check_limits(self, key: Key) -> None:
        if self._closing or len(self._live) >= self._limit:
            raise Overloaded(f"{len(self._live)} jobs are running or waiting; wait for one to end")
        limit = None if key.limits.jobs is None else share(key.limits.jobs, self.servers)
        if limit is not None and sum(live.writer.key == key.name for live in self._live.values()) >= limit:
            raise RateLimited(
                f"this key may have {limit} unfinished jobs here; wait for one to end, or cancel it", limit="jobs"
            )

    def counts(self) -> dict[str, int]:
        """Returns how many jobs are queued and running."""
        statuses = [live.record.status for live in self._live.values()]
        return {status: statuses.count(status) for status in ("queued", "running")}

    async def close(self) -> None:
        """Interrupts every job; they become `failed` with code `interrupted`. Ends the lease. May be called more than once."""
        self._closing = True
        reason = Interrupted("the server was stopped before the job ended")
        for live in self._live.values():
            live.stop(reason)
        if tasks := [live.task for live in self._live.values()]:
            await asyncio.wait(tasks, timeout=self._close_seconds)
        for name, live in self._live.items():
            self._unsaved.setdefault(name, _failed(live.record, reason))
        try:
            await self._save_rest()
            await self.store.servers.release(self._server)
        except SteeringError as error:  # after the lease other servers report what is left
            log.warning("lease_not_released", code=error.code, jobs=list(self._unsaved))

    async def cancel_of(self, key: str) -> None:
        """Cancels the unfinished jobs that a key submitted, also on other servers."""
        await self.store.servers.request_cancel_of(key)
        for live in tuple(self._live.values()):
            if live.writer.key == key:
                live.cancel()

    async def _put(self, record: JobRecord, writer: Writer = UNLIMITED) -> JobRecord:
        return await self.store.in_namespace(record.namespace, writer).jobs.put(record)

    async def _run(self, live: LiveJob, work: Work) -> None:
        """Stores the first record of a job, runs it, and writes its final record to memory and to the store."""
        try:
            live.update(await self._put(live.record, live.writer))
        except Exception as error:
            del self._live[live.record.id]
            live.stored.set_exception(error)
            live.stored.exception()  # marks it retrieved, because a cancelled caller never reads it
            return
        live.stored.set_result(None)
        record = await self._final_record(live, work)
        try:
            live.update(await self._put(record))
            self._live.pop(record.id, None)
        except Exception:
            log.exception("job_record_not_stored", job=record.id)
            self._unsaved[record.id] = record
            live.update(record)

    async def _final_record(self, live: LiveJob, work: Work) -> JobRecord:
        """Runs a job and returns its final record, whatever ends it."""
        try:
            await live.stoppable(self._slots.acquire())
            try:
                live.update(await self._put(replace(live.record, status="running")))
                if live.record.status in FINAL:  # another server has taken this one for dead
                    return live.record
                result = await live.stoppable(work(lambda *made: self._progress(live, *made)))
            finally:
                self._slots.release()
        except JobCancelled:
            return replace(live.record, status="cancelled")
        except Interrupted as error:
            live.failure = error
        except Exception as error:  # the job failed; the log names it
            with structlog.contextvars.bound_contextvars(job=live.record.id, kind=live.record.kind):
                live.failure = public_error(error)
        else:
            return replace(live.record, status="succeeded", result=result)
        return _failed(live.record, live.failure)

    @staticmethod
    def _progress(live: LiveJob, done: int, total: int, message: str) -> None:
        live.update(replace(live.record, progress={"done": done, "total": total, "message": message}))


def _failed(record: JobRecord, reason: SteeringError) -> JobRecord:
    return replace(record, status="failed", error={"code": reason.code, "message": reason.message})
