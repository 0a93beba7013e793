"""Copies, backups and restores of whole databases: everything arrives, a failure changes nothing, servers may be running."""

import asyncio
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from steering.errors import InvalidRequest, StoreCorrupt
from steering.spec import SteeringSpec
from steering.store.address import read_address
from steering.store.backup import backup, copy_database, restore
from steering.store.records import JobRecord
from steering.store.store import open_sql_store
from tests.polling import until
from tests.steering.store.maintenance.conftest import MakeUrl, content
from tests.steering.store.old_schema import fill, oldest_database
from tests.steering.store.planted import planted, same_numbers


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_copy_has_every_row_and_goes_on_where_the_source_was(source: str, kind: str, make: MakeUrl) -> None:
    target = make(kind)
    reported: dict[str, int] = {}
    copy_database(read_address(source), read_address(target), report=reported.__setitem__)
    assert content(target) == content(source)
    assert reported["vectors"] == 3
    store = await open_sql_store(target)
    assert same_numbers(await store.shared.vectors.get("warmth", 2), planted("warmth", 1))
    assert (await store.shared.vectors.put(planted("cold", 5))).version == 2
    await store.shared.jobs.put(JobRecord(id="job-new", kind="extract", status="queued"))
    await store.audit.append(key="key-a", action="PUT", target="new", request_id="r", status=200)
    assert [job.id for job in (await store.shared.jobs.find()).items] == ["job-new", "job-2", "job-1", "job-0"]
    assert (await store.audit.find(1))[0][0].target == "new"
    await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_target_with_content_is_refused_or_replaced_while_a_server_uses_it(
    source: str, kind: str, make: MakeUrl
) -> None:
    target = make(kind)
    store = await open_sql_store(target)
    await store.shared.vectors.put(planted("other", 1))
    await store.servers.renew("server", 1000, {})
    before = await store.servers.changes()
    with pytest.raises(InvalidRequest, match="1 rows in vectors"):
        copy_database(read_address(source), read_address(target))
    assert (await store.shared.vectors.get("other")).version == 1
    copy_database(read_address(source), read_address(target), replace=True)
    assert content(target) == content(source)
    assert (await store.servers.renew("second", 1000, {})).servers == 2
    after = await store.servers.changes()
    assert all(after[topic] > before.get(topic, 0) for topic in ("keys", "default_steering", "documents"))
    assert [key.id for key in await store.keys.all()] == ["key_1"]
    await store.close()


async def test_what_cannot_be_copied_is_refused(source: str, make: MakeUrl, tmp_path: Path) -> None:
    address = read_address(source)
    with pytest.raises(InvalidRequest, match="same database"):
        copy_database(address, address, replace=True)
    missing = read_address(f"sqlite:///{tmp_path}/missing.sqlite3")
    with pytest.raises(InvalidRequest, match="not a database"):
        copy_database(missing, read_address(make("sqlite")))
    assert not (tmp_path / "missing.sqlite3").exists()
    old = make("sqlite")
    with oldest_database(old):
        pass
    with pytest.raises(InvalidRequest, match="steer db upgrade"):
        copy_database(read_address(old), read_address(make("sqlite")))
    assert content(source)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_backup_is_one_private_file_that_is_restored_into_either_database(
    source: str, kind: str, make: MakeUrl, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    file = folder / "backup 1%.sqlite3"
    backup(read_address(source), file)
    assert [one.name for one in folder.iterdir()] == [file.name]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(InvalidRequest, match="exists"):
        backup(read_address(source), file)
    before = file.read_bytes()
    target = make(kind)
    restore(file, read_address(target))
    assert file.read_bytes() == before
    assert content(target) == content(source)
    store = await open_sql_store(target)
    await store.shared.profiles.set_default(None)
    await store.close()
    with pytest.raises(InvalidRequest, match="not empty"):
        restore(file, read_address(target))
    restore(file, read_address(target), replace=True)
    assert content(target) == content(source)


async def test_a_backup_during_writes_is_one_moment_of_the_database(source: str, tmp_path: Path) -> None:
    """Each write adds a vector and then a profile of its name: a snapshot has as many vectors, or one more."""
    store = await open_sql_store(source)
    stop, written = asyncio.Event(), list[str]()

    async def write() -> None:
        while not stop.is_set():
            name = f"v{len(written)}"
            await store.shared.vectors.put(planted(name, len(written)))
            await store.shared.profiles.put(name, SteeringSpec())
            written.append(name)

    async def one_more() -> None:
        """Returns after another write, however slow the disk is, or when writing failed."""
        before = len(written)
        await until(lambda: writing.done() or len(written) > before)

    writing = asyncio.create_task(write())
    counts = []
    for number in range(4):
        await one_more()
        file = tmp_path / f"backup-{number}"
        await asyncio.to_thread(backup, read_address(source), file)
        with closing(sqlite3.connect(file)) as copy:
            vectors = copy.execute("SELECT count(*) FROM vector_names WHERE name LIKE 'v%'").fetchone()[0]
            profiles = copy.execute("SELECT count(*) FROM profiles WHERE name LIKE 'v%'").fetchone()[0]
        assert profiles <= vectors <= profiles + 1
        counts.append(vectors)
    stop.set()
    await writing
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    await store.close()


async def test_a_file_that_is_no_backup_or_damaged_changes_nothing(source: str, tmp_path: Path, make: MakeUrl) -> None:
    before = content(source)
    other = tmp_path / "other"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE x (y)")
    text = tmp_path / "text"
    text.write_text("no database at all " * 100)
    whole = tmp_path / "whole"
    backup(read_address(source), whole)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(whole.read_bytes()[:-9000])
    for file, error in ((other, InvalidRequest), (text, StoreCorrupt), (damaged, StoreCorrupt)):
        with pytest.raises(error):
            restore(file, read_address(source), replace=True)
    with pytest.raises(InvalidRequest, match="no file"):
        restore(tmp_path / "missing", read_address(source), replace=True)
    with pytest.raises(InvalidRequest, match="no database"):
        backup(read_address(f"sqlite:///{tmp_path}/missing.sqlite3"), tmp_path / "b")
    assert content(source) == before


async def test_a_backup_of_an_earlier_schema_is_restored(make: MakeUrl, tmp_path: Path) -> None:
    with oldest_database(f"sqlite:///{tmp_path}/old.sqlite3") as old:
        dates = {"created_at": "a", "updated_at": "b", "namespace": "shared"}
        fill(old, "profiles", [{"name": "cheerful", "description": "d", "steering": '{"interventions": []}', **dates}])
    target = make("postgresql")
    restore(tmp_path / "old.sqlite3", read_address(target))
    store = await open_sql_store(target)
    assert (await store.shared.profiles.get("cheerful")).description == "d"
    await store.close()
