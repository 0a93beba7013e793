"""Every job ends with a final record, and its waiter with what that record says, whatever is cancelled or lost on the way."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from app.api.jobs import Jobs, outlasted
from app.core.errors import JobCancelled
from app.core.settings import Settings
from steering.errors import Interrupted, StorageFull, StoreUnavailable
from steering.store.jobs import Jobs as StoredJobs
from steering.store.records import JobRecord
from steering.store.store import NamespaceStore, Store
from steering.vectors import ConceptVector
from tests.app.changed_store import ChangedStore, changed, fails
from tests.app.conftest import StartServer
from tests.app.operation.test_job_leases import jobs_of
from tests.fakes import ScriptedEngine
from tests.polling import holds, until

PAIRS = [{"positive": f"good day {i}", "negative": f"bad day {i}"} for i in range(12)]


class SlowStore(ChangedStore):
    """A store that writes job records of one status only once `opened`, or not at all if it `fails`.

    As in a database, a write that has begun runs to its end when its caller is cancelled.
    """

    def __init__(self, inner: Store, status: str, fails: bool = False) -> None:
        self.inner = inner
        super().__init__(inner, lambda found: replace(found, jobs=SlowJobs(found.jobs, self)))
        self.status, self.fails = status, fails
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def records(self) -> list[JobRecord]:
        return list((await self.inner.shared.jobs.find()).items)


class SlowJobs(StoredJobs):
    """The jobs of a SlowStore."""

    def __init__(self, jobs: StoredJobs, store: SlowStore) -> None:
        super().__init__(jobs.database, jobs.namespace, jobs.writer)
        self._slow = store

    async def put(self, job: JobRecord) -> JobRecord:
        return await asyncio.shield(asyncio.ensure_future(self._put(job)))

    async def _put(self, job: JobRecord) -> JobRecord:
        if job.status == self._slow.status:
            self._slow.reached.set()
            await self._slow.opened.wait()
            if self._slow.fails:
                raise StoreUnavailable("the database does not answer")
        return await super().put(job)


class Counted:
    """Work that ends at once and counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    async def __call__(self, _: object) -> dict[str, str]:
        self.runs += 1
        return {"vector": "mood@1"}


async def started(store: SlowStore) -> Jobs:
    """The jobs of a server with a lease."""
    jobs = Jobs(store, "server", Settings())
    await jobs.renew()
    return jobs


async def ended(jobs: Jobs) -> None:
    await until(lambda: jobs.counts() == {"queued": 0, "running": 0})


@pytest.mark.parametrize("ask", ["submit", "complete"])
async def test_a_caller_that_leaves_while_its_job_is_being_stored_leaves_a_cancelled_job(
    memory: Store, ask: str
) -> None:
    store, work = SlowStore(memory, "queued"), Counted()
    jobs = await started(store)
    leaving = asyncio.create_task(getattr(jobs_of(jobs), ask)("extract", {}, work))
    await store.reached.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    store.opened.set()
    await ended(jobs)
    assert [one.status for one in await store.records()] == ["cancelled"]
    assert work.runs == 0


async def test_a_job_that_cannot_be_stored_is_refused_and_forgotten(memory: Store) -> None:
    store, work = SlowStore(memory, "queued", fails=True), Counted()
    store.opened.set()
    jobs = await started(store)
    with pytest.raises(StoreUnavailable):
        await jobs_of(jobs).submit("extract", {}, work)
    assert jobs.counts() == {"queued": 0, "running": 0}
    assert (await store.records(), work.runs) == ([], 0)


@pytest.mark.parametrize("status", ["running", "succeeded"])
async def test_the_waiter_of_a_job_that_was_reported_as_interrupted_gets_that_error(memory: Store, status: str) -> None:
    store, work = SlowStore(memory, status), Counted()
    jobs = await started(store)
    waiting = asyncio.create_task(jobs_of(jobs).complete("extract", {}, work))
    await store.reached.wait()
    await store.servers.release("server")  # as if its time had passed
    await Jobs(store.inner, "other", Settings()).renew()
    store.opened.set()
    with pytest.raises(Interrupted):
        await waiting
    await ended(jobs)
    assert work.runs == (status == "succeeded"), "a job that has been reported does not begin"


async def test_cancelling_during_the_last_write_changes_nothing(memory: Store) -> None:
    store = SlowStore(memory, "succeeded")
    jobs = await started(store)
    waiting = asyncio.create_task(jobs_of(jobs).complete("extract", {}, Counted()))
    await store.reached.wait()
    cancelling = asyncio.create_task(jobs_of(jobs).cancel((await store.records())[0].id))
    await asyncio.sleep(0)
    store.opened.set()
    assert (await cancelling).status == "succeeded"
    assert await waiting == {"vector": "mood@1"}


async def test_a_last_write_that_fails_while_the_job_is_cancelled_is_repeated(memory: Store) -> None:
    store = SlowStore(memory, "succeeded", fails=True)
    jobs = await started(store)
    waiting = asyncio.create_task(jobs_of(jobs).complete("extract", {}, Counted()))
    await store.reached.wait()
    cancelling = asyncio.create_task(jobs_of(jobs).cancel((await store.records())[0].id))
    await asyncio.sleep(0)
    store.opened.set()
    assert (await cancelling).status == "succeeded"
    assert await waiting == {"vector": "mood@1"}
    store.fails = False
    await jobs.renew()
    assert [one.status for one in await store.records()] == ["succeeded"]


async def test_a_vector_that_cannot_be_stored_for_a_while_is_stored_afterwards(start: StartServer) -> None:
    server = await start(ScriptedEngine())
    store, failures = server.state.store, iter((True,))

    def away(found: NamespaceStore) -> NamespaceStore:
        async def put(vector: ConceptVector) -> ConceptVector:
            if next(failures, False):
                raise StoreUnavailable("the database does not answer")
            return await found.vectors.put(vector)

        return replace(found, vectors=changed(found.vectors, put=put))

    server.state.jobs.store = ChangedStore(store, away)
    answer = await server.client.post("/v1/vectors/extract?wait=true", json={"name": "mood", "pairs": PAIRS})
    assert (answer.status_code, answer.json()["id"]) == (201, "mood@1")


async def test_a_job_that_cannot_begin_while_the_database_is_away_begins_afterwards(memory: Store) -> None:
    failures = iter((False, True))

    def away(found: NamespaceStore) -> NamespaceStore:
        async def put(job: JobRecord) -> JobRecord:
            if next(failures, False):
                raise StoreUnavailable("the database does not answer")
            return await found.jobs.put(job)

        return replace(found, jobs=changed(found.jobs, put=put))

    jobs = Jobs(ChangedStore(memory, away), "server", Settings())
    await jobs.renew()
    assert await jobs_of(jobs).complete("extract", {}, Counted()) == {"vector": "mood@1"}
    assert [one.status for one in (await memory.shared.jobs.find()).items] == ["succeeded"]


async def test_a_database_that_does_not_come_back_is_given_up() -> None:
    with pytest.raises(StoreUnavailable):
        await outlasted(fails, 0.0)


@pytest.mark.parametrize("refused", [False, True])
async def test_a_job_that_is_cancelled_while_its_vector_is_being_stored_has_that_vector(
    start: StartServer, refused: bool
) -> None:
    server = await start(ScriptedEngine())
    store, reached, opened = server.state.store, asyncio.Event(), asyncio.Event()

    def slow(found: NamespaceStore) -> NamespaceStore:
        async def put(vector: ConceptVector) -> ConceptVector:
            reached.set()
            await opened.wait()
            if refused:
                raise StorageFull("the database is full")
            return await found.vectors.put(vector)

        return replace(found, vectors=changed(found.vectors, put=put))

    server.state.jobs.store = ChangedStore(store, slow)
    job = (await server.client.post("/v1/vectors/extract", json={"name": "mood", "pairs": PAIRS})).json()
    await reached.wait()
    cancelling = asyncio.create_task(server.client.delete(f"/v1/jobs/{job['id']}"))
    live = server.state.jobs.live(job["id"])
    assert live is not None
    await until(lambda: live._reason is not None)
    opened.set()
    ended = (await cancelling).json()
    assert ended["status"] == ("failed" if refused else "succeeded")
    assert refused or ended["result"]["vector"]["id"] == "mood@1"
    assert len((await store.shared.vectors.find()).items) == (not refused)


@pytest.mark.parametrize("reached", [True, False])
async def test_a_job_that_has_not_begun_when_the_server_stops_is_interrupted(memory: Store, reached: bool) -> None:
    store, work = SlowStore(memory, "queued"), Counted()
    jobs = await started(store)
    waiting = asyncio.create_task(jobs_of(jobs).complete("extract", {}, work))
    await (store.reached.wait() if reached else asyncio.sleep(0))
    closing = asyncio.create_task(jobs.close())
    await asyncio.sleep(0)
    store.opened.set()
    await closing
    with pytest.raises(Interrupted):
        await waiting
    (record,) = await store.records()
    assert (record.status, record.error and record.error.code) == ("failed", "interrupted")
    assert work.runs == 0


async def test_a_queued_job_is_cancelled_without_a_slot(memory: Store) -> None:
    store, begun = SlowStore(memory, "none"), asyncio.Event()
    jobs = Jobs(store, "server", Settings(max_jobs=1))

    async def endless(_: object) -> Mapping[str, Any]:
        begun.set()
        await asyncio.Event().wait()
        return {}

    work: Callable[[object], Awaitable[Mapping[str, Any]]] = Counted()
    first = await jobs_of(jobs).submit("extract", {}, endless)
    await begun.wait()
    waiting = asyncio.create_task(jobs_of(jobs).complete("extract", {}, work))

    async def both_are_stored() -> bool:
        return len(await store.records()) == 2

    await holds(both_are_stored)
    (second,) = [one.id for one in await store.records() if one.id != first.id]
    assert (await jobs_of(jobs).cancel(second)).status == "cancelled"
    with pytest.raises(JobCancelled):
        await waiting
    assert (await jobs_of(jobs).cancel(first.id)).status == "cancelled"
    assert await jobs_of(jobs).complete("extract", {}, work) == {"vector": "mood@1"}


async def test_a_waiter_whose_job_somebody_else_cancels_gets_an_error_of_its_own(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()))
    body = {"name": "mood", "pairs": PAIRS}
    waiting = asyncio.create_task(server.client.post("/v1/vectors/extract?wait=true", json=body))
    await until(lambda: server.engine.stats().running == 1)
    (job,) = (await server.client.get("/v1/jobs")).json()["data"]
    assert (await server.client.delete(f"/v1/jobs/{job['id']}")).json()["status"] == "cancelled"
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_cancelled")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


async def test_a_server_that_stops_does_not_wait_for_work_that_cannot_be_stopped(memory: Store) -> None:
    store, begun, loaded = SlowStore(memory, "none"), asyncio.Event(), asyncio.Event()
    jobs = Jobs(store, "server", Settings(), close_seconds=0.05)
    await jobs.renew()

    async def loads(_: object) -> dict[str, str]:
        begun.set()
        loading = asyncio.ensure_future(loaded.wait())
        try:
            await asyncio.shield(loading)
        finally:
            await asyncio.wait({loading})  # as a model is loaded to its end
        return {}

    live = jobs.live((await jobs_of(jobs).submit("report", {}, loads)).id)
    assert live is not None
    await begun.wait()
    await jobs.close()
    assert [(one.status, one.error and one.error.code) for one in await store.records()] == [("failed", "interrupted")]
    loaded.set()
    await live.task
    assert live.record.status == "failed"
