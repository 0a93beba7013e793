"""Jobs of a server that cannot reach the database for a while, or that others took for dead."""

import asyncio
import math
from dataclasses import replace

import pytest

from app.api.jobs import Jobs, NamespaceJobs
from app.core.admission import ANONYMOUS, Admission, Budget, RateLimits
from app.core.settings import Settings
from steering.errors import InvalidRequest, StorageFull, StoreUnavailable
from steering.namespaces import SHARED
from steering.store.jobs import Jobs as StoredJobs
from steering.store.records import JobRecord, Renewal
from steering.store.store import Store
from tests.app.changed_store import ChangedStore
from tests.polling import until


class Unreliable(ChangedStore):
    """A store whose job records cannot be written while it is off. full: the kind of those that find it full."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, lambda found: replace(found, jobs=UnreliableJobs(found.jobs, self)))
        self.off, self.full = False, ""


class UnreliableJobs(StoredJobs):
    """The jobs of an Unreliable store."""

    def __init__(self, jobs: StoredJobs, switch: Unreliable) -> None:
        super().__init__(jobs.database, jobs.namespace, jobs.writer)
        self._switch = switch

    async def put(self, job: JobRecord) -> JobRecord:
        if self._switch.off:
            raise StoreUnavailable("the database does not answer")
        if job.kind == self._switch.full:
            raise StorageFull("the database is full")
        return await super().put(job)


def jobs_of(jobs: Jobs) -> NamespaceJobs:
    """The jobs of the namespace `shared`."""
    return NamespaceJobs(jobs, SHARED, ANONYMOUS, Admission(Budget(1, ""), Budget(1, ""), Budget(1, ""), RateLimits()))


async def test_what_a_job_found_while_the_database_was_away_is_stored_afterwards(memory: Store) -> None:
    unreliable = Unreliable(memory)
    jobs = Jobs(unreliable, "server", Settings())
    await jobs.renew()

    async def work(_: object) -> dict[str, str]:
        unreliable.off = True
        return {"vector": "mood@1"}

    assert await jobs_of(jobs).complete("extract", {}, work) == {"vector": "mood@1"}
    (record,) = (await jobs_of(jobs).find(10, None)).data
    assert record.status == "succeeded"
    assert (await memory.shared.jobs.get(record.id)).status == "running"
    with pytest.raises(StoreUnavailable):
        await jobs.renew()
    assert (await jobs_of(jobs).get(record.id)).status == "succeeded"
    unreliable.off = False
    await jobs.renew()
    assert (await memory.shared.jobs.get(record.id)).result == {"vector": "mood@1"}
    assert jobs.counts() == {"queued": 0, "running": 0}


async def test_a_result_that_cannot_be_stored_is_the_failure_of_its_job(memory: Store) -> None:
    jobs = Jobs(memory, "server", Settings())
    await jobs.renew()

    async def work(_: object) -> dict[str, float]:
        return {"mean": math.nan}

    with pytest.raises(InvalidRequest, match="result cannot be written as JSON"):
        await jobs_of(jobs).complete("report", {}, work)
    (record,) = (await memory.shared.jobs.find()).items
    assert (record.status, record.error and record.error.code) == ("failed", "invalid_request")
    assert jobs.counts() == {"queued": 0, "running": 0}
    await jobs.renew()


async def test_a_record_that_cannot_be_stored_holds_up_no_other_and_no_release(memory: Store) -> None:
    unreliable = Unreliable(memory)
    jobs = Jobs(unreliable, "server", Settings())
    await jobs.renew()

    async def work(_: object) -> dict[str, str]:
        unreliable.off = True
        return {"vector": "mood@1"}

    for kind in ("report", "extract"):
        unreliable.off = False
        await jobs_of(jobs).complete(kind, {}, work)
    unreliable.off, unreliable.full = False, "report"
    with pytest.raises(StorageFull):
        await jobs.renew()
    assert {one.kind: one.status for one in (await memory.shared.jobs.find()).items} == {
        "extract": "succeeded",
        "report": "running",
    }
    await jobs.close()
    assert await memory.servers.renew("other", 1000, {}) == Renewal(interrupted=1, servers=1)


async def test_a_server_that_lost_its_lease_ends_the_jobs_that_were_reported(memory: Store) -> None:
    slow = Jobs(memory, "slow", Settings(lease_seconds=1))
    await slow.renew()
    ended = asyncio.Event()

    async def work(_: object) -> dict[str, str]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return {}

    job = await jobs_of(slow).submit("extract", {}, work)
    await until(lambda: slow.counts()["running"] == 1)
    await memory.servers.release("slow")  # as if its time had passed
    await Jobs(memory, "other", Settings()).renew()
    await slow.renew()
    await asyncio.wait_for(ended.wait(), 30)
    await until(lambda: slow.counts() == {"queued": 0, "running": 0})
    record = await jobs_of(slow).get(job.id)
    assert (record.status, record.error and record.error.code) == ("failed", "interrupted")
