"""Damaged database files are reported, each kind of damage with its error."""

import asyncio
from pathlib import Path

import pytest

from steering.errors import StorageFull, StoreCorrupt, StoreUnavailable, VectorNotFound
from steering.spec import SteeringSpec
from steering.store.records import KeyRecord, VersionPage
from steering.store.store import Store, open_sql_store
from steering.vectors import ConceptVector
from tests.steering.store.concurrent_writer import opened_behind_its_back
from tests.steering.store.planted import planted


class TestDamage:
    async def test_a_blob_that_changed_is_reported_as_corrupt(self, store: Store, file: Path) -> None:
        for name in ("a", "b", "c"):
            await store.shared.vectors.put(planted(name, 1))
        with opened_behind_its_back(file) as other:
            content = bytearray(other.execute("SELECT content FROM vectors WHERE name = 'b'").fetchone()[0])
            content[-1] ^= 1
            other.execute("UPDATE vectors SET content = ? WHERE name = 'b'", (bytes(content),))
        with pytest.raises(StoreCorrupt, match="b@1"):
            await store.shared.vectors.get("b")
        page = await store.shared.vectors.find()
        assert [vector.name for vector in page.items] == ["a", "b", "c"], "a listing reads no blob"
        await store.shared.vectors.delete("b")
        with pytest.raises(VectorNotFound):
            await store.shared.vectors.get("b")

    async def test_damaged_metadata_hides_its_own_vector_from_listings_and_no_other(
        self, store: Store, file: Path
    ) -> None:
        for name in ("a", "b", "c"):
            await store.shared.vectors.put(planted(name, 1))
        with opened_behind_its_back(file) as other:
            other.execute("UPDATE vectors SET metadata_json = substr(metadata_json, 2) WHERE name = 'b'")
        page = await store.shared.vectors.find(2)
        assert ([vector.name for vector in page.items], page.damaged) == (["a"], ("b@1",))
        page = await store.shared.vectors.find(2, page.next_cursor)
        assert [vector.name for vector in page.items] == ["c"]
        assert await store.shared.vectors.versions("b") == VersionPage("shared", (), None, ("b@1",))
        assert (await store.shared.vectors.get("b")).version == 1

    async def test_a_blob_that_says_nothing_sensible_is_corrupt_even_with_its_digest(
        self, store: Store, file: Path
    ) -> None:
        await store.shared.vectors.put(planted("a", 1))
        with opened_behind_its_back(file) as other:
            digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            other.execute("UPDATE vectors SET content = x'', sha256 = ?", (digest,))
        with pytest.raises(StoreCorrupt, match="a@1"):
            await store.shared.vectors.get("a")

    async def test_a_profile_that_is_no_steering_is_corrupt(self, store: Store, file: Path) -> None:
        await store.shared.profiles.put("cheerful", SteeringSpec())
        with opened_behind_its_back(file) as other:
            other.execute("UPDATE profiles SET steering = '{'")
        with pytest.raises(StoreCorrupt, match="cheerful"):
            await store.shared.profiles.get("cheerful")

    async def test_a_listing_leaves_a_damaged_profile_out_and_names_it_and_none_of_shared_takes_its_place(
        self, store: Store, file: Path
    ) -> None:
        team = store.in_namespace("team").profiles
        for name in ("calm", "cheerful", "curt"):
            await store.shared.profiles.put(name, SteeringSpec())
        await team.put("cheerful", SteeringSpec())
        with opened_behind_its_back(file) as other:
            other.execute("UPDATE profiles SET steering = '{' WHERE namespace = 'team'")
        page = await team.find()
        assert ([one.name for one in page.items], page.damaged) == (["calm", "curt"], ("cheerful",))
        page = await store.shared.profiles.find()
        assert ([one.name for one in page.items], page.damaged) == (["calm", "cheerful", "curt"], ())

    async def test_a_key_whose_limits_are_damaged_stays_a_key_that_may_do_nothing(
        self, store: Store, file: Path
    ) -> None:
        for name in ("a", "b"):
            await store.keys.create(KeyRecord(f"key_{name}", "team", name * 64, ("admin",)))
        with opened_behind_its_back(file) as other:
            other.execute("UPDATE api_keys SET limits = '{' WHERE id = 'key_b'")
        found = {key.id: (key.scopes, key.limits) for key in await store.keys.all()}
        assert found == {"key_a": (("admin",), {}), "key_b": ((), {})}

    async def test_a_file_that_is_no_database_is_refused_and_left_alone(self, file: Path) -> None:
        file.parent.mkdir(parents=True)
        diary = b"a diary, not a database\n" * 200
        await asyncio.to_thread(file.write_bytes, diary)
        with pytest.raises(StoreCorrupt):
            await open_sql_store(f"sqlite:///{file}")
        assert await asyncio.to_thread(file.read_bytes) == diary

    async def test_a_file_overwritten_in_its_middle_is_corrupt(self, store: Store, file: Path) -> None:
        for seed in range(20):
            await store.shared.vectors.put(planted("warmth", seed, d_model=1024))
        await store.close()
        content = bytearray(await asyncio.to_thread(file.read_bytes))
        content[4096:] = b"\xff" * (len(content) - 4096)
        await asyncio.to_thread(file.write_bytes, content)
        with pytest.raises(StoreCorrupt):
            await open_sql_store(f"sqlite:///{file}")

    async def test_a_place_that_cannot_be_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        for place in (tmp_path / "file" / "store.sqlite3", tmp_path / "folder"):
            with pytest.raises(StoreUnavailable) as refusal:
                await open_sql_store(f"sqlite:///{place}")
            assert str(tmp_path) not in refusal.value.message
        assert "(SQLITE_CANTOPEN)" in refusal.value.message


async def test_a_full_store_reports_it_writes_nothing_partially_and_works_again_when_there_is_space(file: Path) -> None:
    store = await open_sql_store(f"sqlite:///{file}?max_mb=1")
    puts = [store.shared.vectors.put(planted("warmth", seed, layers=4, d_model=4096)) for seed in range(1, 31)]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ConceptVector, StorageFull}
    kept = sum(isinstance(outcome, ConceptVector) for outcome in outcomes)
    assert 5 <= kept < 16
    newest = await store.shared.vectors.get("warmth")
    assert newest.version == kept
    assert newest.sha256 in {outcome.sha256 for outcome in outcomes if isinstance(outcome, ConceptVector)}
    with pytest.raises(StorageFull):
        await store.shared.vectors.put(planted("other", 1, layers=4, d_model=4096))
    assert [vector.name for vector in (await store.shared.vectors.find()).items] == ["warmth"]
    await store.shared.vectors.delete("warmth")
    assert (await store.shared.vectors.put(planted("warmth", 1))).version == kept + 1
    await store.close()
