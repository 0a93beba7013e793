"""Old records, and old versions of vectors that nothing names, are deleted."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from steering.errors import InvalidRequest
from steering.store.address import read_address
from steering.store.migrate import current
from steering.store.pruning import days_ago, prune_records, prune_versions
from steering.store.records import JobRecord, now, utc_text
from steering.store.store import Store, open_sql_store
from tests.steering.store.old_schema import oldest_database
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


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_dry_run_does_not_upgrade_a_database(kind: str, tmp_path: Path, postgresql_url: str) -> None:
    url = postgresql_url if kind == "postgresql" else f"sqlite:///{tmp_path}/old.sqlite3"
    with oldest_database(url):
        pass
    address = read_address(url)
    before = current(address)
    for prune in (lambda: prune_records(address, {}, dry_run=True), lambda: prune_versions(address, 1, dry_run=True)):
        with pytest.raises(InvalidRequest, match=f"has schema {before[0]}.*steer db upgrade"):
            prune()
    assert current(address) == before


def test_a_dry_run_at_a_mistyped_path_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="not a database of this server"):
        prune_records(read_address(f"sqlite:///{tmp_path}/folder/mistyped.sqlite3"), {}, dry_run=True)
    assert list(tmp_path.iterdir()) == []


def test_times_sort_as_texts_also_before_the_year_1000() -> None:
    early = utc_text(datetime(999, 1, 2, tzinfo=UTC))
    assert early == "0999-01-02T00:00:00.000000Z"
    assert days_ago(500_000) < early < days_ago(1) < now()
