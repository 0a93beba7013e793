"""Jobs: the long work (extraction, evaluation, batches) that runs on this server, and /v1/jobs, which lists, watches and cancels it.

A job runs on the server that accepted it, its owner. Servers on one database see each other's jobs through their records:
the owner stores progress with each renewal of its lease, and learns then which of its jobs others have cancelled.

The task of a job stores all its records, the first included, and is never cancelled: ending a job early cancels its work.
"""

import asyncio
import contextlib
import hashlib
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeAlias, TypeVar

import structlog
from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from app.api.context import Context, ContextDep
from app.api.policy import Policy
from app.core.admission import Admission, Key, foreign, page_size, share
from app.core.answers import Event, FileStream, damage_warnings, event_stream, json_in_thread
from app.core.errors import InvalidApiKey, JobCancelled, RateLimited, RequestTimedOut, json_response, public_error
from app.core.requests import ApiRoute
from app.core.settings import Settings
from steering.errors import Interrupted, NotFound, Overloaded, SteeringError, StorageFull, StoreUnavailable, Unavailable
from steering.namespaces import SHARED, visible_from
from steering.schemas.base import NamespacePageQuery
from steering.schemas.extraction import TransferRequest
from steering.schemas.generation import JSON_LINES
from steering.schemas.resources import JobAnswer, JobError, JobPage, JobProgress
from steering.store.database import UNLIMITED, Writer
from steering.store.jobs import Jobs as JobRecords
from steering.store.pruning import days_ago
from steering.store.records import JobRecord
from steering.store.store import Store
from steering.workflows.generate import Progress

log = structlog.get_logger(__name__)

T = TypeVar("T")
Work: TypeAlias = Callable[[Progress], Awaitable[Mapping[str, Any]]]
"""work(progress) -> a result that JSON can represent. Cancelling the awaitable must stop the work, except a write (`written`)."""
Prepared: TypeAlias = tuple[int, Work]
"""The tokens that a job counts for the limit of its key, and its work."""
Charged: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Counts the tokens of a job while its first record is stored, and none of a job that is refused. Raises RateLimited."""
CLOSE_SECONDS = 2.0
"""How long a server that stops waits for its jobs. What takes longer, such as the load of a model, is reported as interrupted."""
POLL_SECONDS = 0.5
"""Pause between two reads of a job of another server."""
CANCEL_SECONDS = 5.0
"""How long a cancellation waits for the server that owns the job."""
LEFT_SECONDS = 5.0
"""What is left of the longest life of a request when it stops waiting for a job, at most half of it: at its deadline the handler is
cancelled, and the job with it."""
AWAY_SECONDS = 180.0
"""How long a job repeats what it asks of a database that is away: a restore, a failover or a restart takes no longer, and its results may
be the work of hours. Then it fails, since it keeps its slot and its memory."""
AWAY_PAUSE_SECONDS = 1.0
"""Pause before it is repeated."""
FINAL = frozenset({"succeeded", "failed", "cancelled"})
_TEXTS = frozenset(
    {"pairs", "positive", "negative", "describe", "anchors", "prompts", "neutral", "items", "instruction"}
)
"""Fields of requests that are texts of the caller, and left out of the record."""

router = APIRouter(route_class=ApiRoute, tags=["jobs"])


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job of this process: who submitted it, its newest record and task.
    stored: is done once the first record is stored, or has the error that prevented it.
    failure: the error that the work raised.
    changed: is set when the record changes."""

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

    def stop(self, reason: SteeringError | None = None) -> None:
        """Ends the work, also work that has not begun, but no write of a record. The first reason counts. Without a reason the
        job was cancelled."""
        if self._reason is None:
            self._reason = reason or JobCancelled("the job was cancelled before it ended")
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
        if self.record.status == "succeeded":
            return self.record.result or {}
        if self.record.status == "cancelled":
            raise JobCancelled("the job was cancelled before it ended")
        error = self.record.error or JobError(code="", message="the job failed")
        if self.failure is not None and self.failure.code == error.code:
            raise self.failure
        raise Interrupted(error.message)  # what other servers report of a server without a lease


class Jobs:
    """The jobs of one server. Requests use them through `NamespaceJobs`."""

    def __init__(self, store: Store, server: str, settings: Settings, close_seconds: float = CLOSE_SECONDS) -> None:
        self.store, self._server = store, server
        self.request_seconds = settings.request_seconds
        self._lease_seconds, self._close_seconds = settings.lease_seconds, close_seconds
        self._slots = asyncio.Semaphore(settings.max_jobs)
        self._limit = settings.max_jobs + settings.max_queued_jobs
        self._live: dict[str, LiveJob] = {}
        self._unsaved: dict[str, JobRecord] = {}
        self.servers = 1
        self._closing = False

    async def renew(self) -> None:
        """Renews the lease of this server, which other servers take for dead without it. Ends jobs that may not go on.
        Raises StoreUnavailable."""
        if self._closing:
            return
        live = dict(self._live)
        progress = {name: one.record.progress for name, one in live.items()}
        renewal = await self.store.servers.renew(self._server, self._lease_seconds, progress)
        self.servers = renewal.servers
        if renewal.interrupted:
            log.warning("jobs_interrupted", count=renewal.interrupted)
        for name in renewal.ended:
            live[name].stop()
        await self._save_rest()

    async def _save_rest(self) -> None:
        """Stores the final records that could not be stored when their jobs ended; one that still cannot holds up no other. Raises
        StoreUnavailable, and the last error of a record."""
        failure: Exception | None = None
        for name, record in tuple(self._unsaved.items()):
            if (live := self._live.get(name)) is None:
                continue
            try:
                await self._save(live, record)
            except Unavailable:
                raise
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    async def _save(self, live: LiveJob, record: JobRecord) -> None:
        """Stores the final record of a job and forgets the job. A result that cannot be stored, such as one with NaN, becomes the
        failure of the job. A record that cannot be stored now is kept for `_save_rest`, and the error is raised."""
        try:
            live.update(await self._put(record))
        except Exception as error:
            if record.result is not None and not isinstance(error, (Unavailable, StorageFull)):
                live.failure = public_error(error)
                await self._save(live, _failed(record.model_copy(update={"result": None}), live.failure))
                return
            self._unsaved[record.id] = record
            live.update(record)
            raise
        self._unsaved.pop(record.id, None)
        self._live.pop(record.id, None)

    def live(self, job_id: str) -> LiveJob | None:
        """Returns a job of this process that has not ended."""
        return self._live.get(job_id)

    async def submit(
        self, record: JobRecord, key: Key, work: Work, release: Callable[[], None], charged: Charged
    ) -> LiveJob:
        """Queues a job; `release` is called once, when it has ended or was refused. Raises Overloaded when too many are waiting, RateLimited
        when the key has too many, what `charged` raises, and StorageFull."""
        try:
            self._check_limits(key)
        except SteeringError:
            release()
            raise
        record = record.model_copy(update={"owner": self._server, "created_by": key.name})
        live = self._live[record.id] = LiveJob(Writer(key.name, key.limits.storage_bytes), record)
        live.task = asyncio.create_task(self._run(live, work, key, charged))
        live.task.add_done_callback(lambda _: release())
        try:
            await asyncio.shield(live.stored)
        except asyncio.CancelledError:  # nobody learns the id of this job
            live.stop()
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
            try:
                await self._save_rest()
            finally:
                await self.store.servers.release(self._server)
        except SteeringError as error:  # after the lease other servers report what is left
            log.warning("lease_not_released", code=error.code, jobs=list(self._unsaved))

    async def cancel_of(self, key: str) -> None:
        """Cancels the unfinished jobs that a key submitted, also on other servers."""
        await self.store.servers.request_cancel_of(key)
        for live in tuple(self._live.values()):
            if live.writer.key == key:
                live.stop()

    async def _put(self, record: JobRecord, writer: Writer = UNLIMITED) -> JobRecord:
        return await self.store.in_namespace(record.namespace, writer).jobs.put(record)

    async def _run(self, live: LiveJob, work: Work, key: Key, charged: Charged) -> None:
        """Stores the first record of a job, runs it, and writes its final record to memory and to the store."""
        try:
            with charged():
                live.update(await self._put(live.record, live.writer))
        except Exception as error:
            del self._live[live.record.id]
            live.stored.set_exception(error)
            live.stored.exception()  # marks it retrieved, because a cancelled caller never reads it
            return
        live.stored.set_result(None)
        record = await self._final_record(live, work, key)
        try:
            await self._save(live, record)
        except Exception:
            log.exception("job_record_not_stored", job=record.id)

    async def _final_record(self, live: LiveJob, work: Work, key: Key) -> JobRecord:
        """Runs a job and returns its final record, whatever ends it."""

        remaining = Remaining()

        def progress(done: int, total: int, message: str) -> None:
            left = remaining.after(done, total, time.monotonic())
            made = JobProgress(done=done, total=total, message=message, seconds_left=left)
            live.update(live.record.model_copy(update={"progress": made}))

        try:
            await live.stoppable(outlasted(partial(self._check_key, key)))
            await live.stoppable(self._slots.acquire())
            try:
                running = live.record.model_copy(update={"status": "running"})
                live.update(await live.stoppable(written(partial(self._put, running))))
                if live.record.status in FINAL:  # another server has taken this one for dead
                    return live.record
                result = await live.stoppable(work(progress))
            finally:
                self._slots.release()
        except JobCancelled:
            return live.record.model_copy(update={"status": "cancelled"})
        except Interrupted as error:
            live.failure = error
        except Exception as error:  # the job failed; the log names it
            with structlog.contextvars.bound_contextvars(job=live.record.id, kind=live.record.kind):
                live.failure = public_error(error)
        else:
            return live.record.model_copy(update={"status": "succeeded", "result": dict(result)})
        return _failed(live.record, live.failure)

    async def _check_key(self, key: Key) -> None:
        """Raises InvalidApiKey for a key that was deleted before the first record of its job was stored, which `cancel_of` has not seen."""
        if key.id and not await self.store.keys.exists(key.id):
            raise InvalidApiKey("the key of this job is no longer known")


class Remaining:
    """Estimates how long work still takes: as fast as since its total changed last. It needs a few seconds, and 2 % of the work."""

    LEAST_SECONDS, LEAST_SHARE = 4.0, 0.02

    def __init__(self) -> None:
        self._begun = (0, 0, 0.0)

    def after(self, done: int, total: int, now: float) -> float | None:
        """Returns the seconds that are left once `done` of `total` steps are made; None while that is not known."""
        if total != self._begun[1] or done < self._begun[0]:
            self._begun = (done, total, now)
        made, passed = done - self._begun[0], now - self._begun[2]
        known = made > 0 and done < total and passed >= self.LEAST_SECONDS and made >= self.LEAST_SHARE * total
        return round(passed * (total - done) / made, 1) if known else None


def _failed(record: JobRecord, reason: SteeringError) -> JobRecord:
    error = JobError(code=reason.code, message=reason.message)
    return record.model_copy(update={"status": "failed", "error": error})


@dataclass(frozen=True, slots=True)
class NamespaceJobs:
    """The jobs that one caller sees: the jobs of its namespace, and in `shared` its own ones, or all for an admin. A
    caller makes and cancels jobs of its namespace only.
    admission: the memory of the request. A job keeps it, because it holds what the request sent."""

    jobs: Jobs
    namespace: str
    key: Key
    admission: Admission

    @property
    def _store(self) -> JobRecords:
        return self.jobs.store.in_namespace(self.namespace, Writer("" if self._sees_all else self.key.name)).jobs

    @property
    def _sees_all(self) -> bool:
        return "admin" in self.key.scopes

    async def submit(
        self, kind: str, request: Mapping[str, Any], work: Work, charged: Charged = nullcontext
    ) -> JobRecord:
        """Queues a job and returns its record. By default it counts no tokens: a batch counts them line by line. Raises Overloaded,
        RateLimited, StorageFull."""
        return (await self._submit(kind, request, work, charged)).record

    async def complete(
        self,
        kind: str,
        request: Mapping[str, Any],
        work: Work,
        charged: Charged = nullcontext,
        deadline: float = math.inf,
    ) -> Mapping[str, Any]:
        """Runs a job within the same limits and returns its result. A cancelled caller cancels the job; shortly before `deadline`
        (of time.monotonic), at which a caller is cancelled, it gets RequestTimedOut, and the job goes on. Raises also what `submit`
        raises, and the error that ended the job: JobCancelled where another caller cancelled it."""
        live, seconds = await self._submit(kind, request, work, charged), self.jobs.request_seconds
        left = deadline - min(LEFT_SECONDS, seconds / 2) - time.monotonic()
        try:
            await asyncio.wait({live.task}, timeout=max(left, 0.0))
        except asyncio.CancelledError:
            live.stop()
            raise
        if not live.task.done():
            job = live.record.id
            raise RequestTimedOut(
                f"job {job} takes longer than a request may ({seconds:g} s); it goes on: GET /v1/jobs/{job}"
            )
        live.task.result()
        return live.result()

    async def get(self, job_id: str) -> JobRecord:
        """Returns the newest record. Raises JobNotFound."""
        live = self._visible(job_id)
        return live.record if live is not None else await self._store.get(job_id)

    async def find(self, limit: int, cursor: str | None) -> JobPage:
        """Lists jobs, newest first, running ones with their progress."""
        page = await self._store.find(limit, cursor)
        jobs = [live.record if (live := self._visible(record.id)) else record for record in page.items]
        return JobPage(data=jobs, next_cursor=page.next_cursor, warnings=damage_warnings(page.damaged))

    async def watch(self, job_id: str) -> AsyncIterator[JobRecord]:
        """Yields the record now and after each change until it is final. A slow watcher may miss steps, never the end."""
        live = self._visible(job_id)
        while True:
            changed = None if live is None else live.changed
            record = await self._store.get(job_id) if live is None else live.record
            yield record
            if record.status in FINAL:
                return
            await (asyncio.sleep(POLL_SECONDS) if changed is None else changed.wait())

    async def cancel(self, job_id: str) -> JobRecord:
        """Stops a job and returns its final record; a job that has ended is unchanged. The record is not final yet when
        the work takes longer than CANCEL_SECONDS to end, such as the load of a model. Raises JobNotFound, and
        InsufficientScope for a job of `shared` where that is not the caller's namespace."""
        record = await self.get(job_id)
        if record.namespace != self.namespace:
            raise foreign("job", job_id, record.namespace, self.namespace)
        if live := self._visible(job_id):
            live.stop()
            await asyncio.wait({live.task}, timeout=CANCEL_SECONDS)
            return live.record
        if record.status not in FINAL:  # the server that owns it is asked
            await self.jobs.store.servers.request_cancel(record.id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    async for newest in self.watch(record.id):
                        record = newest
        return record

    async def _submit(self, kind: str, request: Mapping[str, Any], work: Work, charged: Charged) -> LiveJob:
        job_id = f"job-{secrets.token_hex(8)}"
        record = JobRecord(id=job_id, kind=kind, status="queued", request=dict(request), namespace=self.namespace)
        return await self.jobs.submit(record, self.key, work, self.admission.keep_for_job(), charged)

    def _visible(self, job_id: str) -> LiveJob | None:
        live = self.jobs.live(job_id)
        if live is None or live.record.namespace not in visible_from(self.namespace):
            return None
        mine = live.record.namespace != SHARED or live.record.created_by == self.key.name
        return live if mine or self._sees_all else None


async def outlasted(ask: Callable[[], Awaitable[T]], seconds: float = AWAY_SECONDS) -> T:
    """Returns what `ask` returns, and asks again for so many seconds while the database is away. Raises what `ask` raises."""
    until = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(AWAY_PAUSE_SECONDS)


async def written(write: Callable[[], Coroutine[Any, Any, T]], seconds: float = AWAY_SECONDS) -> T:
    """Returns what a write of a job returns, as `outlasted`. A write that is under way when the job is stopped counts, because its
    transaction completes in any case."""

    async def once() -> T:
        task = asyncio.create_task(write())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            return await task

    return await outlasted(once, seconds)


def job_options(status: int, model: Any, about: str) -> dict[str, Any]:
    """Returns the options of a route that answers with a job; with `wait=true` with the result, a `model`."""
    waited = {"model": model, "description": f"With wait=true: {about}"}
    return {"status_code": 202, "response_model": JobAnswer, "responses": {status: waited}}


def jobs_of(context: Context) -> NamespaceJobs:
    """Returns the jobs that a request sees. Raises NotReady."""
    return NamespaceJobs(context.state[Jobs], context.namespace, context.key, context.admission)


async def respond(
    context: Context, kind: str, body: BaseModel, job: Prepared, wait: bool, status: int, part: str | None = None
) -> Response:
    """Returns the result, or a part of it, with `status` once the job has ended; without `wait` 202 and the queued job. Raises
    Overloaded, OutOfMemory, RateLimited, StorageFull: what is refused counts no tokens. With `wait` also what `NamespaceJobs.complete`
    raises."""
    context.admission.release_rows()  # a job has limits of its own
    # a list of numbers of a transfer; the `direction` of a report is a word
    hidden = _TEXTS | {"direction"} if isinstance(body, TransferRequest) else _TEXTS
    jobs, request = jobs_of(context), body.model_dump(mode="json", exclude=set(hidden), exclude_unset=True)
    tokens, work = job
    charged = partial(context.charged, tokens)
    if wait:
        result = await jobs.complete(kind, request, work, charged, context.deadline)
        return await json_in_thread(lambda: dict(result) if part is None else result[part], status=status)
    queued = await jobs.submit(kind, request, work, charged)
    return json_response(queued.model_dump(mode="json"), 202)


@router.get("/v1/jobs")
async def find(query: Annotated[NamespacePageQuery, Query()], context: ContextDep) -> JobPage:
    """Lists jobs without their results, newest first."""
    limit = page_size(query, context.settings.max_page)
    return await jobs_of(context).find(limit, query.cursor)


@router.get("/v1/jobs/{job_id}")
async def read(job_id: str, context: ContextDep) -> JobAnswer:
    """Returns the current state of one job."""
    return await jobs_of(context).get(job_id)


@router.delete("/v1/jobs/{job_id}")
async def cancel(job_id: str, context: ContextDep) -> JobAnswer:
    """Cancels a job. A job that has ended is unchanged."""
    return await jobs_of(context).cancel(job_id)


@router.get(
    "/v1/jobs/{job_id}/events", response_class=Response, responses={200: {"content": {"text/event-stream": {}}}}
)
async def watch(job_id: str, context: ContextDep) -> Response:
    """Streams `progress` events, then `done` with the final record."""
    jobs = jobs_of(context)
    await jobs.get(job_id)

    async def events() -> AsyncGenerator[Event, None]:
        async for record in jobs.watch(job_id):
            yield Event(record.model_dump(mode="json"), "done" if record.status in FINAL else "progress")

    return await event_stream(context.state, events())


@router.get("/v1/jobs/{job_id}/output", response_class=Response, responses={200: {"content": JSON_LINES}})
async def output(job_id: str, context: ContextDep) -> Response:
    """Returns the results of a batch as JSON lines, also while it runs and after it was cancelled."""
    job, outputs = await jobs_of(context).get(job_id), context.state.store.outputs
    output_id = job.request.get("output")
    if not isinstance(output_id, str):
        raise NotFound(f"job {job_id} has no output; its result is in its record")
    first, days = await outputs.read(output_id, 0), context.settings.output_days
    deleted = job.status == "succeeded" or job.updated_at < days_ago(days)  # of others perhaps nothing was ever stored
    if first is None and deleted and job.status in FINAL and job.progress.done:
        raise NotFound(f"the results of job {job_id} are not stored; they are deleted after {days} days")

    async def pieces() -> AsyncIterator[bytes]:
        content, part = first, 0
        while content is not None:
            yield content.encode()
            part += 1
            content = await outputs.read(output_id, part)

    return FileStream(pieces(), f"{job_id}.jsonl", context.state, media_type="application/jsonl")


@dataclass(eq=False, slots=True)
class StoredCheckpoints:
    """Keeps parts as outputs of jobs, which are deleted by age and count against the storage of the key. They belong to one namespace, in
    `shared` to one key, and to one policy: what the policy makes mandatory acts on every answer, and no plan of a request names it."""

    store: Store
    namespace: str
    writer: Writer
    policy: Policy
    _sought: dict[str, str] = field(default_factory=dict)

    async def load(self, key: str) -> str | None:
        """See Checkpoints.load."""
        found = self._sought[key] = self._id(key)
        return await outlasted(lambda: self.store.outputs.read(found, 0))

    async def save(self, key: str, content: str) -> None:
        """See Checkpoints.save. A part that cannot be stored is computed again, and so is one during which the policy changed."""
        found = self._id(key)
        if self._sought.pop(key, None) != found:
            return
        try:
            if await self.store.outputs.read(found, 0) is None:  # an equal job may have been faster
                await self.store.outputs.append(found, 0, content, self.namespace, self.writer)
        except SteeringError as error:
            log.warning("part_not_stored", code=error.code)

    def _id(self, key: str) -> str:
        active = self.policy.active
        # else the speed of a job would tell what other keys have evaluated
        owner = (self.namespace, self.writer.key) if self.namespace == SHARED else self.namespace
        return hashlib.sha256(repr((owner, key, active.mandatory.key, active.spec)).encode()).hexdigest()


def checkpoints_of(context: Context) -> StoredCheckpoints:
    """Returns where the parts of a job of this request are kept."""
    writer = Writer(context.key.name, context.key.limits.storage_bytes)
    return StoredCheckpoints(context.state.store, context.namespace, writer, context.state[Policy])
