"""What every store promises of links: read by id from anywhere, listed and deleted in their namespace, bounded, pruned."""

import pytest

from steering.errors import InternalError, InvalidRequest, LinkNotFound, StorageFull
from steering.store.database import Writer
from steering.store.store import NamespaceStore, Store
from tests.contracts.stores import a_vector

STATE = {"prompt": "Grüße 🙂", "controls": [{"v": "warmth", "s": -0.1}], "n": None}


def an_id(letter: str) -> str:
    return letter * 16


async def listed(store: NamespaceStore, owner: str | None = None) -> str:
    return "".join(link.id[0] for link in (await store.links.find(owner))[0])


async def test_a_link_is_read_from_every_namespace_as_it_was_saved(store: Store) -> None:
    one = store.in_namespace("one", Writer("key-a"))
    put = await one.links.put(an_id("a"), "compare", STATE)
    assert (put.namespace, put.view, put.url) == ("one", "compare", f"/#/compare?link={an_id('a')}")
    assert put.bytes > 40
    assert put.created_at != ""
    for seen in (one, store.shared, store.in_namespace("other", Writer("key-b"))):
        read = await seen.links.get(an_id("a"))
        assert read.state == STATE
        assert (read.view, read.url, read.created_at) == (put.view, put.url, put.created_at)
    assert await one.links.find("key-a") == ([put], None)


async def test_links_are_listed_and_deleted_by_owner_and_namespace(store: Store) -> None:
    by_a, by_b = (store.in_namespace("one", Writer(key)) for key in ("key-a", "key-b"))
    await by_a.links.put(an_id("a"), "compare", STATE)
    await by_b.links.put(an_id("b"), "read", {})
    await store.in_namespace("other", Writer("key-a")).links.put(an_id("c"), "space", {})
    assert (await listed(by_a, "key-a"), await listed(by_a), await listed(store.shared)) == ("a", "ba", "")
    for wrong in (by_a.links.delete(an_id("b"), "key-a"), store.shared.links.delete(an_id("a"), None)):
        with pytest.raises(LinkNotFound):
            await wrong
    await by_a.links.delete(an_id("a"), "key-a")
    await by_a.links.delete(an_id("b"), None)
    for gone in (by_a.links.get(an_id("a")), by_a.links.delete(an_id("a"), None)):
        with pytest.raises(LinkNotFound, match=an_id("a")):
            await gone
    assert (await store.shared.links.get(an_id("c"))).view == "space"


async def test_pages_follow_each_other_without_gap_or_repeat(store: Store) -> None:
    for letter in "abcde":
        await store.shared.links.put(an_id(letter), "compare", {})
    page, cursor = await store.shared.links.find(None, 2)
    await store.shared.links.delete(an_id("d"), None)
    rest, end = await store.shared.links.find(None, 3, cursor)
    assert ("".join(link.id[0] for link in page + rest), end) == ("edcba", None)
    for wrong in ("", "x", "am9iOjE="):
        with pytest.raises(InvalidRequest):
            await store.shared.links.find(None, 1, wrong)


async def test_a_link_that_cannot_be_is_refused(store: Store) -> None:
    await store.shared.links.put(an_id("a"), "compare", {})
    with pytest.raises(InternalError):
        await store.shared.links.put(an_id("a"), "read", {})
    for wrong in (
        ("short", "compare", {}),
        (an_id("A"), "compare", {}),
        (an_id("b"), "No view", {}),
        (an_id("b"), "compare", {"x": float("nan")}),
        (an_id("b"), "compare", {"x": "\ud800"}),
    ):
        with pytest.raises(InvalidRequest):
            await store.shared.links.put(*wrong)
    for missing in ("", "../x", "\x00", "\ud800", an_id("b")):
        with pytest.raises(LinkNotFound):
            await store.shared.links.get(missing)
        with pytest.raises(LinkNotFound):
            await store.shared.links.delete(missing, None)
    assert await listed(store.shared) == "a"


async def test_the_number_and_the_bytes_of_a_writer_are_limited(store: Store) -> None:
    few = store.in_namespace("one", Writer("key-a", max_links=1))
    first = await few.links.put(an_id("a"), "compare", STATE)
    with pytest.raises(StorageFull, match="this key has 1 links; it may have 1"):
        await few.links.put(an_id("b"), "compare", {})
    await store.in_namespace("one", Writer("key-b", max_links=1)).links.put(an_id("b"), "compare", {})
    tight = store.in_namespace("one", Writer("key-a", max_bytes=2 * first.bytes - 1))
    with pytest.raises(StorageFull, match="the key may store"):
        await tight.links.put(an_id("c"), "compare", STATE)
    with pytest.raises(StorageFull, match=f"takes {first.bytes} bytes"):
        await tight.vectors.put(a_vector())
    await few.links.delete(an_id("a"), "key-a")
    await tight.links.put(an_id("c"), "compare", STATE)


async def test_old_links_of_every_namespace_are_pruned(store: Store) -> None:
    for letter, namespace in (("a", "one"), ("b", "shared")):
        put = await store.in_namespace(namespace).links.put(an_id(letter), "compare", {})
    assert await store.prune("links", put.created_at[:4]) == 0
    assert await store.prune("links", "2999") == 2
    with pytest.raises(LinkNotFound):
        await store.shared.links.get(an_id("a"))
