"""Old records, and old versions of vectors that nothing names, are deleted."""

from datetime import UTC, datetime

from steering.store.address import read_address
from steering.store.pruning import days_ago, prune_records, prune_versions
from steering.store.records import JobRecord, now, utc_text
from steering.store.store import Store, open_sql_store
from tests.steering.store.planted import planted


async def numbers(store: Store) -> tuple[int, ...]:
    """The versions that are left."""
    return tuple(one.version for one in (await store.shared.vectors.versions("warmth")).versions)


async def test_old_versions_that_nothing_names_are_pruned(source: str) -> None:
    store = await open_sql_store(source)
    for seed in range(3, 7):
        await store.shared.vectors.put(planted("warmth", seed))
    await store.documents.put("policy", {"mandatory": [{"vector": "warmth@4"}]})
    address = read_address(source)
    assert prune_versions(address, 2, dry_run=True) == ("warmth@3", "warmth@5")
    assert await numbers(store) == (7, 6, 5, 4, 3, 2, 1)
    assert prune_versions(address, 2) == ("warmth@3", "warmth@5")
    assert await numbers(store) == (7, 6, 4, 2, 1)  # 1: default, 2: profile, 4: policy
    assert prune_versions(address, 1) == ("warmth@6",)
    await store.close()


async def test_old_jobs_audit_entries_and_links_are_pruned(source: str) -> None:
    address = read_address(source)
    store = await open_sql_store(source)
    await store.servers.renew("s", 1000, {})
    await store.shared.jobs.put(JobRecord(id="job-running", kind="extract", status="running", owner="s"))
    future, past = "2999-01-01T00:00:00.000000Z", "2000-01-01T00:00:00.000000Z"
    none = prune_records(address, {"jobs": past, "audit": past, "links": past})
    assert none == {"jobs": 0, "audit": 0, "links": 0}
    dry = prune_records(address, {"jobs": future, "audit": past, "links": future}, dry_run=True)
    assert dry == {"jobs": 3, "audit": 0, "links": 1}
    done = prune_records(address, {"jobs": future, "audit": future, "links": future})
    assert done == {"jobs": 3, "audit": 3, "links": 1}
    assert [job.id for job in (await store.shared.jobs.find()).items] == ["job-running"]
    await store.close()


def test_times_sort_as_texts_also_before_the_year_1000() -> None:
    early = utc_text(datetime(999, 1, 2, tzinfo=UTC))
    assert early == "0999-01-02T00:00:00.000000Z"
    assert days_ago(500_000) < early < days_ago(1) < now()
