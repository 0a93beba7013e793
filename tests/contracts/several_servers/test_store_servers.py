"""What every store promises of servers that share it: leases, the jobs of each, cancelling, pruning, counters of changes."""

import asyncio
from collections.abc import Awaitable, Callable

from sqlalchemy import update

from steering.schemas.resources import JobProgress, JobStatus
from steering.spec import SteeringSpec
from steering.store.records import JobRecord, KeyRecord, Renewal
from steering.store.store import Store
from steering.store.tables import JobRow, ServerRow

LONG = 1000.0
SHORT = 0.05


async def job(store: Store, name: str, owner: str, status: JobStatus = "running") -> JobRecord:
    return await store.shared.jobs.put(JobRecord(id=name, kind="extract", status=status, owner=owner))


async def statuses(store: Store) -> dict[str, str]:
    return {record.id: record.status for record in (await store.shared.jobs.find()).items}


async def test_the_jobs_of_a_server_without_a_lease_are_reported_and_no_others(store: Store) -> None:
    await store.servers.renew("living", LONG, {})
    await store.servers.renew("dying", LONG, {})
    for owner in ("living", "dying", "dead"):
        for status in ("queued", "running", "succeeded", "failed", "cancelled"):
            await job(store, f"{owner}-{status}", owner, status)
    # Those of `dead`, which never had a lease.
    assert (await store.servers.renew("living", LONG, {})).interrupted == 2
    unfinished = {f"dying-{status}": JobProgress() for status in ("queued", "running")}
    await store.servers.renew("dying", SHORT, unfinished)
    await asyncio.sleep(2 * SHORT)
    assert await store.servers.renew("other", LONG, {}) == Renewal(interrupted=2, servers=2)
    assert await store.servers.renew("other", LONG, {}) == Renewal(interrupted=0, servers=2)
    found = await statuses(store)
    for owner in ("dying", "dead"):
        for status in ("queued", "running"):
            assert found.pop(f"{owner}-{status}") == "failed"
            record = await store.shared.jobs.get(f"{owner}-{status}")
            assert record.error is not None
            assert record.error.code == "interrupted"
    assert all(name.endswith(f"-{status}") for name, status in found.items())


async def test_a_start_of_one_server_ends_no_job_of_another(store: Store) -> None:
    await store.servers.renew("first", LONG, {})
    await job(store, "job-1", "first")
    assert await store.servers.renew("second", LONG, {}) == Renewal(servers=2)
    assert await statuses(store) == {"job-1": "running"}


async def test_a_lease_is_extended_by_each_renewal_and_ended_by_a_release(store: Store) -> None:
    await store.servers.renew("one", SHORT, {})
    await store.servers.renew("one", LONG, {})
    await asyncio.sleep(2 * SHORT)
    await job(store, "job-1", "one")
    assert (await store.servers.renew("two", LONG, {})).interrupted == 0
    await store.servers.release("one")
    assert (await store.servers.renew("two", LONG, {})).interrupted == 1
    await store.servers.release("nobody")


async def test_a_server_that_lost_its_lease_learns_it_and_cannot_report_its_jobs_again(store: Store) -> None:
    await store.servers.renew("slow", SHORT, {})
    mine = await job(store, "job-1", "slow")
    await asyncio.sleep(2 * SHORT)
    await store.servers.renew("other", LONG, {})
    assert (await store.servers.renew("slow", LONG, {"job-1": JobProgress()})).ended == {"job-1"}
    assert (await store.shared.jobs.put(mine)).status == "failed"
    assert await statuses(store) == {"job-1": "failed"}


async def end_leases(store: Store, *servers: str) -> None:
    """Ends leases as if their time had passed."""
    ended = update(ServerRow).where(ServerRow.id.in_(servers)).values(lease_until=0.0)
    assert await store.database.change(ended) == len(servers)


async def test_the_first_server_after_an_outage_ends_no_job_of_another_before_one_more_lease(store: Store) -> None:
    servers = ("first", "second", "dead")
    for server in servers:
        await store.servers.renew(server, LONG, {})
        await job(store, f"job-{server}", server)
    await end_leases(store, *servers)
    progress = {f"job-{server}": JobProgress() for server in servers}
    for server in ("first", "second"):
        assert await store.servers.renew(server, LONG, progress) == Renewal(servers=3)
    assert set((await statuses(store)).values()) == {"running"}
    await end_leases(store, "dead")
    assert (await store.servers.renew("first", LONG, progress)).interrupted == 1
    assert await statuses(store) == {"job-dead": "failed", "job-second": "running", "job-first": "running"}


async def test_a_job_that_its_own_server_does_not_know_is_reported_after_a_lease(store: Store) -> None:
    await store.servers.renew("living", LONG, {})
    for name in ("known", "unknown", "new"):
        await job(store, f"job-{name}", "living")
    await job(store, "job-ended", "living", "succeeded")
    old = update(JobRow).where(JobRow.id != "job-new").values(updated_at="2000-01-01T00:00:00.000000Z")
    await store.database.change(old)
    assert await store.servers.renew("living", LONG, {"job-known": JobProgress()}) == Renewal(interrupted=1)
    assert await statuses(store) == {
        "job-ended": "succeeded",
        "job-new": "running",
        "job-unknown": "failed",
        "job-known": "running",
    }


async def test_progress_is_seen_by_every_server_while_the_job_runs(store: Store) -> None:
    await store.servers.renew("one", LONG, {})
    for name, owner in (("a", "one"), ("b", "two")):
        await job(store, name, owner)
    await job(store, "c", "one", "succeeded")
    progress = JobProgress(done=3, total=9, message="reading")
    await store.servers.renew("two", LONG, {})
    await store.servers.renew("one", LONG, dict.fromkeys(("a", "b", "c", "unknown"), progress))
    assert [(await store.shared.jobs.get(name)).progress for name in "abc"] == [progress, JobProgress(), JobProgress()]


async def test_a_cancellation_reaches_the_owner_and_wakes_it(store: Store) -> None:
    await store.servers.renew("owner", LONG, {})
    for name in ("job-1", "job-2"):
        await job(store, name, "owner")
    before = (await store.servers.changes()).get("jobs", 0)
    await store.servers.request_cancel("job-1")
    assert (await store.servers.changes())["jobs"] == before + 1
    assert (await store.servers.renew("owner", LONG, {"job-1": JobProgress(), "job-2": JobProgress()})).ended == {
        "job-1"
    }
    await job(store, "job-1", "owner", "cancelled")
    for name in ("job-1", "missing", "", "\x00"):
        await store.servers.request_cancel(name)
    assert (await store.servers.changes())["jobs"] == before + 1


async def test_old_jobs_that_have_ended_are_pruned(store: Store) -> None:
    await store.servers.renew("owner", LONG, {})
    for status in ("queued", "running", "succeeded", "failed", "cancelled"):
        await job(store, f"job-{status}", "owner", status)
    assert await store.prune("jobs", "2000-01-01T00:00:00.000000Z") == 0
    assert await store.prune("jobs", "2999-01-01T00:00:00.000000Z") == 3
    assert await statuses(store) == {"job-running": "running", "job-queued": "queued"}
    await job(store, "job-new", "owner")
    assert list(await statuses(store)) == ["job-new", "job-running", "job-queued"]


async def test_what_servers_hold_in_memory_is_counted_when_it_changes(store: Store) -> None:
    changes: dict[str, tuple[Callable[[], Awaitable[object]], ...]] = {
        "keys": (
            lambda: store.keys.create(KeyRecord("key_1", "a", "0" * 64, ("read",))),
            lambda: store.keys.edit("key_1", lambda *_: {"name": "b"}),
            lambda: store.keys.edit("key_1", lambda *_: None),
        ),
        "default_steering": (
            lambda: store.shared.profiles.set_default(SteeringSpec()),
            lambda: store.shared.profiles.set_default(None),
        ),
        "documents": (lambda: store.documents.put("policy", {"x": 1}), lambda: store.documents.put("policy", None)),
    }
    for topic, calls in changes.items():
        for call in calls:
            before = await store.servers.changes()
            await call()
            after = await store.servers.changes()
            assert after == {**before, topic: before.get(topic, 0) + 1}
    await store.keys.touch({"key_1": "2026-01-01T00:00:00.000000Z"})
    assert await store.servers.changes() == after
