"""What is stored names vectors that exist, whichever of two transactions comes first; a put may demand that nothing came meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from steering.errors import InvalidRequest, NotNewest, VectorInUse, VectorNotFound
from steering.store.records import Page
from steering.store.store import Store
from tests.contracts.stores import a_vector, names, put_vectors, steering

Put = Callable[[Store, str], Awaitable[object]]
USERS: dict[str, Put] = {
    "profile": lambda store, name: store.shared.profiles.put("p", steering({"vector": "other"}, {"vector": name})),
    "default": lambda store, name: store.shared.profiles.set_default(steering({"vector": name})),
    "policy": lambda store, name: store.documents.put("policy", {"mandatory": [{"vector": name}], "limits": {"n": 1}}),
}


@pytest.fixture(params=sorted(USERS))
def put(request: pytest.FixtureRequest) -> Put:
    """Stores a user of a vector."""
    return USERS[request.param]


async def test_a_user_of_a_missing_vector_is_not_stored(store: Store, put: Put) -> None:
    await put_vectors(store.shared, "other", "warmth", "warmth")
    await store.shared.vectors.delete("warmth", version=1)
    for missing in ("warmth@1", "warmth@3", "cold@1"):
        with pytest.raises(VectorNotFound, match=f"'{missing}'"):
            await put(store, missing)
    assert await store.shared.profiles.find() == Page(())
    assert await store.shared.profiles.default() is None
    assert await store.documents.get("policy") is None
    await put(store, "warmth@2")


async def test_a_delete_and_a_user_that_come_at_once_do_not_both_succeed(store: Store, put: Put) -> None:
    await put_vectors(store.shared, "other")
    for number in range(1, 7):
        await put_vectors(store.shared, "warmth")
        calls = [put(store, f"warmth@{number}"), store.shared.vectors.delete("warmth")]
        if number % 2:
            calls.reverse()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kinds = {type(one) for one in outcomes if isinstance(one, Exception)}
        assert kinds in ({VectorNotFound}, {VectorInUse}), outcomes
        await store.shared.vectors.delete("warmth", force=True) if kinds == {VectorInUse} else None


async def test_a_vector_of_a_document_is_not_deleted(store: Store) -> None:
    await put_vectors(store.shared, "warmth", "warmth", "warmth-2")
    await store.documents.put("policy", {"monitors": [{"vector": "warmth@1"}], "text": "not warmth@2, nor this"})
    for version in (None, 1):
        with pytest.raises(VectorInUse, match="the policy"):
            await store.shared.vectors.delete("warmth", version=version)
    await store.shared.vectors.delete("warmth", version=2)
    await store.shared.vectors.delete("warmth-2")
    one = store.in_namespace("one")
    await put_vectors(one, "warmth")
    await one.vectors.delete("warmth")  # a document means the vectors of `shared`
    await store.documents.put("policy", None)
    await store.shared.vectors.delete("warmth")
    assert await names(store) == []


async def test_a_forced_delete_may_keep_what_a_document_names(store: Store) -> None:
    await put_vectors(store.shared, "warmth", "warmth", "cold")
    await store.documents.put("policy", {"vector": "warmth@1"})
    await store.shared.profiles.put("p", steering({"vector": "warmth@2"}, {"vector": "cold"}))
    for version in (None, 1):
        with pytest.raises(VectorInUse, match="the policy"):
            await store.shared.vectors.delete("warmth", force=True, version=version, documents_too=False)
    await store.shared.vectors.delete("warmth", force=True, version=2, documents_too=False)
    await store.shared.vectors.delete("cold", force=True, documents_too=False)
    assert await names(store) == ["warmth"]
    await store.shared.vectors.delete("warmth", force=True)


async def test_a_namespace_names_what_it_sees(store: Store) -> None:
    one = store.in_namespace("one")
    await put_vectors(store.shared, "warmth", "warmth", "cold")
    await put_vectors(one, "warmth", "mine")
    for seen in ("warmth", "warmth@1", "mine@1", "cold@1"):
        await one.profiles.put("p", steering({"vector": seen}))
        await one.profiles.set_default(steering({"vector": seen}))
    for hidden in ("warmth@2", "gone"):
        with pytest.raises(VectorNotFound):
            await one.profiles.put("p", steering({"vector": hidden}))
    for call in (store.shared.profiles.set_default, store.in_namespace("other").profiles.set_default):
        with pytest.raises(VectorNotFound):
            await call(steering({"vector": "mine"}))
    with pytest.raises(InvalidRequest):
        await one.profiles.set_default(steering({"vector": "No Name"}))
    assert await one.profiles.default() == steering({"vector": "cold@1"})


async def test_a_vector_is_stored_only_after_the_one_it_was_made_from(store: Store) -> None:
    first = await store.shared.vectors.put(a_vector(seed=1))
    outcomes = await asyncio.gather(
        store.shared.vectors.put(a_vector(seed=2)),
        *(store.shared.vectors.put(first, after=first) for _ in range(3)),
        return_exceptions=True,
    )
    assert [type(one) for one in outcomes].count(NotNewest) in (2, 3), "at most one of them came first"
    newest = await store.shared.vectors.get("warmth")
    with pytest.raises(NotNewest, match=f"{newest.id} of namespace 'shared', not {first.id} of namespace 'shared'"):
        await store.shared.vectors.put(first, after=first)
    one = store.in_namespace("one")
    assert (await one.vectors.put(newest, after=newest)).namespace == "one"
    with pytest.raises(NotNewest, match=f"warmth@1 of namespace 'one', not {newest.id} of namespace 'shared'"):
        await one.vectors.put(newest, after=newest)  # the namespace sees its own now
    await store.shared.vectors.delete("warmth")
    with pytest.raises(VectorNotFound):
        await store.shared.vectors.put(newest, after=newest)
