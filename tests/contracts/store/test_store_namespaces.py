"""Namespaces are the same in every store: own names first, then `shared`; writing goes to the own namespace alone."""

import pytest

from steering.errors import InvalidRequest, JobNotFound, ProfileNotFound, StorageFull, VectorInUse, VectorNotFound
from steering.store.blob import encode
from steering.store.database import Writer
from steering.store.records import JobRecord
from steering.store.store import NamespaceStore, Store
from steering.vectors import ConceptVector
from tests.contracts.stores import a_vector, put_vectors, steering


def len_of(vector: ConceptVector) -> int:
    """Bytes of a vector as it is stored; those of `a_vector` differ by a few digits of their scales."""
    return len(encode(vector, labels=False)) + 16


async def listed(store: NamespaceStore) -> list[tuple[str, str]]:
    return [(one.namespace, one.id) for one in (await store.vectors.find()).items]


async def test_vectors_are_seen_from_their_namespace_and_shared_ones_from_everywhere(store: Store) -> None:
    shared, one, other = store.shared, store.in_namespace("one"), store.in_namespace("other")
    await shared.vectors.put(a_vector("ours"))
    for seed in range(2):
        put = await one.vectors.put(a_vector("mine", seed=seed))
        assert (put.namespace, put.version) == ("one", seed + 1)
    assert (await other.vectors.put(a_vector("mine", seed=9))).id == "mine@1"
    assert await listed(shared) == [("shared", "ours@1")]
    assert await listed(one) == [("one", "mine@2"), ("shared", "ours@1")]
    assert await listed(other) == [("other", "mine@1"), ("shared", "ours@1")]
    assert await listed(store.in_namespace("empty")) == [("shared", "ours@1")]
    assert (await one.vectors.get("mine")).sha256 != (await other.vectors.get("mine")).sha256
    for call in (shared.vectors.get("mine"), other.vectors.get("mine", 2), shared.vectors.versions("mine")):
        with pytest.raises(VectorNotFound):
            await call


async def test_an_own_vector_hides_every_version_of_the_shared_one(store: Store) -> None:
    one = store.in_namespace("one")
    for seed in range(3):
        await store.shared.vectors.put(a_vector("warmth", seed=seed))
    assert (await one.vectors.get("warmth", 3)).namespace == "shared"
    assert [vector.version for vector in (await one.vectors.versions("warmth")).versions] == [3, 2, 1]
    await one.vectors.put(a_vector("warmth", seed=7))
    assert await listed(one) == [("one", "warmth@1")]
    assert [(vector.namespace, vector.version) for vector in (await one.vectors.versions("warmth")).versions] == [
        ("one", 1)
    ]
    with pytest.raises(VectorNotFound):
        await one.vectors.get("warmth", 3)
    assert (await one.vectors.get("warmth")).namespace == "one"
    await one.vectors.delete("warmth")
    assert (await one.vectors.get("warmth")).version == 3
    assert await listed(store.shared) == [("shared", "warmth@3")]


async def test_shared_vectors_and_profiles_are_not_changed_from_elsewhere(store: Store) -> None:
    one = store.in_namespace("one")
    await store.shared.vectors.put(a_vector("warmth"))
    await store.shared.profiles.put("cheerful", steering({"vector": "warmth"}))
    for call in (
        one.vectors.delete("warmth", force=True),
        one.vectors.describe("warmth", "mine", ()),
        one.vectors.describe("warmth", None, None),
    ):
        with pytest.raises(VectorNotFound):
            await call
    with pytest.raises(ProfileNotFound):
        await one.profiles.delete("cheerful")
    assert (await store.shared.vectors.get("warmth")).description == ""


async def test_profiles_and_defaults_of_a_namespace(store: Store) -> None:
    one, other = store.in_namespace("one"), store.in_namespace("other")
    await put_vectors(store.shared, "a", "b")
    await store.shared.profiles.put("cheerful", steering({"vector": "a"}))
    await store.shared.profiles.put("calm", steering({"vector": "a"}))
    put = await one.profiles.put("cheerful", steering({"vector": "b"}))
    assert put.namespace == "one"
    assert [(p.namespace, p.name) for p in (await one.profiles.find()).items] == [
        ("shared", "calm"),
        ("one", "cheerful"),
    ]
    assert {p.namespace for p in (await other.profiles.find()).items} == {"shared"}
    assert (await one.profiles.get("cheerful")).steering == steering({"vector": "b"})
    assert (await other.profiles.get("cheerful")).steering == steering({"vector": "a"})
    await one.profiles.delete("cheerful")
    assert (await one.profiles.get("cheerful")).namespace == "shared"
    await one.profiles.set_default(steering({"vector": "b"}))
    assert await store.shared.profiles.default() is None
    assert await store.defaults() == {"one": steering({"vector": "b"})}
    await store.shared.profiles.set_default(steering({"vector": "a"}))
    await one.profiles.set_default(None)
    assert await store.defaults() == {"shared": steering({"vector": "a"})}


async def test_jobs_of_a_namespace(store: Store) -> None:
    one, other = store.in_namespace("one"), store.in_namespace("other")
    for name, place in (("job-s", store.shared), ("job-1", one), ("job-2", other), ("job-3", one)):
        await place.jobs.put(JobRecord(id=name, kind="extract", status="running"))
    page = await one.jobs.find(2)
    records, cursor = page.items, page.next_cursor
    page = await one.jobs.find(2, cursor)
    rest, end = page.items, page.next_cursor
    assert ([job.id for job in records + rest], end) == (["job-3", "job-1", "job-s"], None)
    assert (await one.jobs.get("job-1")).namespace == "one"
    assert (await one.jobs.get("job-s")).namespace == "shared"
    with pytest.raises(JobNotFound):
        await other.jobs.get("job-1")
    assert (await store.servers.renew("server", 10, {})).interrupted == 4


async def test_a_delete_asks_the_profiles_that_see_the_vector(store: Store) -> None:
    one = store.in_namespace("one")
    await store.shared.vectors.put(a_vector("warmth"))
    await one.profiles.put("secret", steering({"vector": "warmth"}))
    with pytest.raises(VectorInUse, match="another namespace") as refusal:
        await store.shared.vectors.delete("warmth")
    assert "secret" not in refusal.value.message
    await one.vectors.put(a_vector("warmth"))
    with pytest.raises(VectorInUse, match="'secret'"):
        await one.vectors.delete("warmth")
    await store.shared.vectors.delete("warmth")  # the profile means the vector of its own namespace now
    await store.shared.vectors.put(a_vector("cold"))
    await store.in_namespace("other").profiles.set_default(steering({"vector": "cold@1"}))
    own = await store.in_namespace("other").vectors.put(a_vector("cold"))
    assert own.version == 2, "the default goes on to mean cold@1 of `shared`"
    for version in (1, None):
        with pytest.raises(VectorInUse, match="another namespace"):
            await store.shared.vectors.delete("cold", version=version)
    await store.shared.vectors.delete("cold", force=True)


async def test_the_bytes_of_a_writer_are_limited(store: Store) -> None:
    first = await store.shared.vectors.put(a_vector("measured"))
    tight = store.in_namespace("one", Writer("key-a", 1))
    with pytest.raises(StorageFull, match="may store 1"):
        await tight.vectors.put(a_vector("warmth"))
    assert await listed(tight) == [("shared", "measured@1")]
    one = store.in_namespace("one", Writer("key-a", 5_000))
    stored = 0
    while stored * len_of(first) + len_of(first) <= 5_000:
        await one.vectors.put(a_vector("warmth", seed=stored))
        stored += 1
    assert stored > 1
    with pytest.raises(StorageFull, match="may store 5000"):
        await one.vectors.put(a_vector("warmth"))
    await store.in_namespace("one", Writer("key-b", 5_000)).vectors.put(a_vector("other"))
    await one.vectors.delete("warmth", version=1)
    assert (await one.vectors.put(a_vector("warmth"))).version == stored + 1
    assert first.sha256 == (await one.vectors.get("warmth")).sha256


async def test_a_namespace_has_a_name(store: Store) -> None:
    for wrong in ("", "A", "a/b", "../x", "a" * 65, "a@b"):
        with pytest.raises(InvalidRequest, match="name"):
            store.in_namespace(wrong)
    with pytest.raises(InvalidRequest):
        await store.in_namespace("one").profiles.put("A B", steering())
