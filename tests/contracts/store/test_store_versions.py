"""Single versions are listed and deleted alike in every store."""

import pytest

from steering.errors import VectorInUse, VectorNotFound
from steering.store.records import VersionPage
from steering.store.store import Store
from tests.contracts.stores import a_vector, names, steering


async def numbers(store: Store, limit: int = 50, before: int | None = None) -> list[int]:
    return [one.version for one in (await store.shared.vectors.versions("warmth", limit, before)).versions]


async def test_versions_are_listed_newest_first_page_by_page(store: Store) -> None:
    for seed in range(5):
        await store.shared.vectors.put(a_vector(seed=seed))
    assert await numbers(store) == [5, 4, 3, 2, 1]
    assert await numbers(store, limit=2) == [5, 4]
    assert await numbers(store, limit=2, before=4) == [3, 2]
    assert await numbers(store, limit=2, before=1) == []
    first = await store.in_namespace("team").vectors.versions("warmth", 2)
    assert (first.namespace, first.next_before, first.damaged) == ("shared", 4, ())
    assert (await store.shared.vectors.versions("warmth", 3, before=4)).next_before is None
    assert await store.shared.vectors.versions("warmth", before=1) == VersionPage("", (), None)
    with pytest.raises(VectorNotFound):
        await store.shared.vectors.versions("nobody")


async def test_a_version_is_deleted_alone_and_its_number_is_not_used_again(store: Store) -> None:
    for seed in range(3):
        await store.shared.vectors.put(a_vector(seed=seed))
    await store.shared.vectors.delete("warmth", version=3)
    assert (await store.shared.vectors.get("warmth")).version == 2
    assert await names(store) == ["warmth"]
    with pytest.raises(VectorNotFound):
        await store.shared.vectors.get("warmth", 3)
    with pytest.raises(VectorNotFound):
        await store.shared.vectors.delete("warmth", version=3)
    assert (await store.shared.vectors.put(a_vector(seed=9))).version == 4
    for version in (1, 2, 4):
        await store.shared.vectors.delete("warmth", version=version)
    assert await names(store) == []
    with pytest.raises(VectorNotFound):
        await store.shared.vectors.get("warmth")
    assert (await store.shared.vectors.put(a_vector())).version == 5


async def test_a_version_in_use_stays_unless_forced(store: Store) -> None:
    for seed in range(2):
        await store.shared.vectors.put(a_vector(seed=seed))
    await store.shared.profiles.put("pinned", steering({"vector": "warmth@1"}))
    await store.shared.vectors.delete("warmth", version=2)
    with pytest.raises(VectorInUse, match=r"warmth@1.*'pinned'"):
        await store.shared.vectors.delete("warmth", version=1)
    await store.shared.profiles.put("pinned", steering({"vector": "warmth"}))
    with pytest.raises(VectorInUse, match="'pinned'"):
        await store.shared.vectors.delete("warmth", version=1)
    await store.shared.vectors.put(a_vector(seed=3))
    await store.shared.vectors.delete("warmth", version=1)
    await store.shared.vectors.delete("warmth", force=True)
    assert await names(store) == []
