"""Listings and versions read metadata alone: how many bytes come from the file, and which columns are asked for."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event

from steering.store.database import Writer
from steering.store.records import JobRecord
from steering.store.store import NamespaceStore, Store, open_sql_store
from tests.contracts.stores import steering
from tests.steering.store.planted import planted

LAYERS, D_MODEL = 8, 4096
BYTES = 4 * LAYERS * D_MODEL
NAMES = [f"vector-{number}" for number in range(12)]


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Collects the SQL of a store."""
    seen: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        seen.append(statement)

    engine = store.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


def bytes_read() -> int:
    """Bytes that this process has read from files, from the kernel's cache included."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


async def filled(url: str) -> None:
    store = await open_sql_store(url)
    for name in NAMES:
        await store.shared.vectors.put(planted(name, 1, LAYERS, D_MODEL))
        await store.shared.vectors.put(planted(name, 2, LAYERS, D_MODEL))
    await store.close()


async def test_a_listing_reads_a_small_share_of_the_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.sqlite3'}"
    await filled(url)
    stored = len(NAMES) * 2 * BYTES
    store = await open_sql_store(url)
    before = bytes_read()
    assert len((await store.in_namespace("team").vectors.find(search="vector")).items) == len(NAMES)
    for name in NAMES:
        assert [one.version for one in (await store.shared.vectors.versions(name)).versions] == [2, 1]
    listed = bytes_read() - before
    assert listed < stored / 4, (listed, stored)
    before = bytes_read()
    for name in NAMES:
        await store.shared.vectors.get(name)
    assert bytes_read() - before > stored / 2, "what reads the directions is counted"
    await store.close()


async def test_no_listing_asks_for_the_content(store: Store) -> None:
    await store.shared.vectors.put(planted("warmth", 1))
    with statements(store) as seen:
        for one in (store.shared, store.in_namespace("team")):
            await one.vectors.find(5, tag="a", method="pca", search="x")
            await one.vectors.versions("warmth")
    assert seen
    assert [statement for statement in seen if "content" in statement] == []


async def everything(store: NamespaceStore) -> None:
    """Calls every method that reads or writes in a namespace."""
    await store.vectors.put(planted("warmth", 1))
    await store.vectors.put(planted("warmth", 2))
    await store.vectors.get("warmth")
    await store.vectors.get("warmth", 1)
    await store.vectors.find(tag="a", method="pca", search="x")
    await store.vectors.describe("warmth", "d", ("a",))
    await store.vectors.describe("warmth", None, None)
    await store.vectors.versions("warmth")
    await store.vectors.put(planted("other", 3))
    await store.profiles.put("calm", steering({"vector": "other"}))
    await store.profiles.put("calm", steering({"vector": "other"}))
    await store.profiles.get("calm")
    await store.profiles.find()
    await store.profiles.set_default(steering())
    await store.profiles.default()
    await store.jobs.put(JobRecord(id=f"job-{store.namespace}", kind="extract", status="queued", created_by="key"))
    await store.jobs.put(JobRecord(id=f"job-{store.namespace}", kind="extract", status="running", created_by="key"))
    await store.jobs.get(f"job-{store.namespace}")
    await store.jobs.find()
    await store.vectors.delete("warmth", version=1)
    await store.vectors.delete("warmth")
    await store.profiles.delete("calm")


async def test_every_statement_names_a_namespace(store: Store) -> None:
    """A query that forgets it would show the things of everybody."""
    with statements(store) as seen:
        for name in ("shared", "team"):
            await everything(store.in_namespace(name, Writer("key", 1 << 30)))
    tables = re.compile(r"\b(vectors|vector_names|profiles|default_steering|jobs)\b")
    data = [one for one in seen if tables.search(one)]
    assert len(data) > 40
    assert [one for one in data if "namespace" not in one] == []
