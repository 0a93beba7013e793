"""Keys, audit log, documents and outputs are the same in every store."""

import asyncio
from dataclasses import replace

import pytest

from steering.errors import InternalError, InvalidRequest, KeyNotFound
from steering.store.records import KeyRecord, now
from steering.store.store import Store

KEY = KeyRecord("key_1", "team a", "0" * 64, ("read", "generate"), {"concurrency": 3, "vectors": ["mood"]})
USED = "2026-01-01T00:00:00.000000Z"


async def test_a_key_comes_back_as_it_was_stored(store: Store) -> None:
    stored = await store.keys.create(KEY)
    assert stored == replace(KEY, created_at=stored.created_at)
    assert stored.created_at
    assert await store.keys.all() == (stored,)
    await store.keys.create(KeyRecord("key_2", "second", "1" * 64, ("read",)))
    await store.keys.touch({"key_1": USED, "nobody": USED})
    first, second = await store.keys.all()
    assert first == replace(stored, last_used_at=USED)
    assert second.last_used_at is None
    with pytest.raises(InternalError):
        await store.keys.create(replace(KEY, name="again"))
    await store.keys.edit("key_1", lambda *_: None)
    assert [key.id for key in await store.keys.all()] == ["key_2"]


async def test_a_change_of_a_key_sets_the_given_fields_only(store: Store) -> None:
    stored = await store.keys.create(KEY)
    await store.keys.touch({"key_1": USED})
    await asyncio.gather(
        store.keys.edit("key_1", lambda *_: {"name": "other"}),
        store.keys.edit("key_1", lambda *_: {"scopes": ("admin",), "limits": {"rows": 2}, "namespace": "mine"}),
    )
    expected = replace(
        stored, name="other", last_used_at=USED, scopes=("admin",), limits={"rows": 2}, namespace="mine",
        expires_at="2030-01-01T00:00:00Z",
    )  # fmt: skip
    assert await store.keys.edit("key_1", lambda *_: {"expires_at": "2030-01-01T00:00:00Z"}) == expected
    expected = replace(expected, expires_at=None)
    assert await store.keys.edit("key_1", lambda *_: {"expires_at": None}) == expected
    assert await store.keys.edit("key_1", lambda *_: {}) == expected
    assert await store.keys.all() == (expected,)


async def test_a_key_that_was_deleted_does_not_come_back(store: Store) -> None:
    await store.keys.create(KEY)
    await store.keys.edit("key_1", lambda *_: None)
    counted = await store.servers.changes()
    for missing in ("key_1", "nobody", "", "\x00", "\ud800", "k" * 100):
        with pytest.raises(KeyNotFound):
            await store.keys.edit(missing, lambda *_: {"name": "x"})
        with pytest.raises(KeyNotFound):
            await store.keys.edit(missing, lambda *_: None)
    await store.keys.touch({"key_1": USED})
    assert await store.keys.all() == ()
    assert await store.servers.changes() == counted


async def test_the_audit_log_is_read_newest_first_page_by_page(store: Store) -> None:
    for number in range(5):
        await store.audit.append(
            key="key-a",
            action="PUT /v1/profiles/{name}",
            target=f"name={number}",
            request_id=f"req-{number}",
            status=200,
        )
    found: list[str] = []
    cursor: str | None = None
    while True:
        entries, cursor = await store.audit.find(2, cursor)
        found += [entry.target for entry in entries]
        assert all(entry.at for entry in entries)
        if cursor is None:
            break
    assert found == [f"name={number}" for number in reversed(range(5))]
    with pytest.raises(InvalidRequest):
        await store.audit.find(2, "bm9uZQ==")
    assert await store.prune("audit", "2000-01-01T00:00:00.000000Z") == 0
    assert await store.prune("audit", "2999-01-01T00:00:00.000000Z") == 5
    assert await store.audit.find() == ([], None)


async def test_documents_are_replaced_and_deleted(store: Store) -> None:
    assert await store.documents.get("policy") is None
    await store.documents.put("policy", {"a": [1, 2]})
    await store.documents.put("policy", {"a": [3]})
    assert await store.documents.get("policy") == {"a": [3]}
    await store.documents.put("policy", None)
    assert await store.documents.get("policy") is None


async def test_outputs_are_read_part_by_part_and_deleted_by_age(store: Store) -> None:
    for part in range(3):
        await store.outputs.append("out-1", part, f"line {part} é\n" * 100)
    await store.outputs.append("out-2", 0, "other\n")
    assert [await store.outputs.read("out-1", part) for part in range(4)] == [
        *(f"line {part} é\n" * 100 for part in range(3)),
        None,
    ]
    assert await store.outputs.read("nothing", 0) is None
    assert await store.prune("job_outputs", "2000-01-01T00:00:00.000000Z") == 0
    assert await store.prune("job_outputs", "2999-01-01T00:00:00.000000Z") == 4
    assert await store.outputs.read("out-1", 0) is None


async def test_an_output_is_deleted_as_a_whole_when_its_last_part_is_old(store: Store) -> None:
    await store.outputs.append("out-1", 0, "first\n")
    await store.outputs.append("out-2", 0, "other\n")
    await asyncio.sleep(0.01)  # times have microseconds
    between = now()
    await store.outputs.append("out-1", 1, "second\n")
    assert await store.prune("job_outputs", between) == 1
    assert await store.outputs.read("out-1", 0) == "first\n"
    assert await store.outputs.read("out-2", 0) is None
