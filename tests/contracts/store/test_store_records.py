"""What every store promises of profiles, the default steering and jobs."""

import pytest

from steering.errors import (
    InvalidRequest,
    JobNotFound,
    ProfileNotFound,
    StorageFull,
)
from steering.schemas.resources import JobProgress
from steering.spec import InterventionSpec, SteeringSpec
from steering.store.database import PAGE_BYTES, Writer
from steering.store.records import JobRecord, ProfileName, write_steering
from steering.store.store import Store
from tests.contracts.stores import put_vectors, steering


class TestProfiles:
    async def test_keeps_the_steering_as_it_was_written(self, store: Store) -> None:
        await put_vectors(store.shared, "warmth", "warmth", "a", "b", "built")
        given = steering(
            {"vector": "warmth", "strength": 0.1, "schedule": {"kind": "linear", "to": 0.3, "tokens": 9}},
            {"vector": "warmth@2", "operation": "clamp", "low": -1e-17, "layers": {"from": -3, "to": -1}},
            {"vector": "a", "when": {"not": {"vector": "b", "above": 1.0, "at": "token", "until": 0.5}}},
            {"vector": "a", "layers": [1, 2], "scope": {"tokens": "generated", "start": 0, "end": 4}},
        )
        given = SteeringSpec(interventions=(*given.interventions, InterventionSpec(vector="built", layers="all")))
        put = await store.shared.profiles.put("cheerful", given, "Fröhlich")
        back = await store.shared.profiles.get("cheerful")
        assert back == put
        assert (back.steering, back.description) == (given, "Fröhlich")
        assert back.steering.model_dump_json() == given.model_dump_json()

    async def test_a_second_put_replaces_and_remembers_the_first_day(self, store: Store) -> None:
        await put_vectors(store.shared, "a")
        first = await store.shared.profiles.put("cheerful", steering({"vector": "a"}))
        second = await store.shared.profiles.put("cheerful", SteeringSpec())
        assert second.created_at == first.created_at != ""
        assert second.updated_at >= first.updated_at
        assert (await store.shared.profiles.get("cheerful")).steering == SteeringSpec()

    async def test_a_namespace_has_at_most_so_many_profiles_whoever_stores_them(self, store: Store) -> None:
        one, other = (store.in_namespace("team", Writer(key, max_profiles=2)) for key in ("one", "other"))
        await one.profiles.put("a", SteeringSpec())
        await other.profiles.put("b", SteeringSpec())
        with pytest.raises(StorageFull, match="2 profiles; it may have 2") as refusal:
            await other.profiles.put("c", SteeringSpec())
        assert refusal.value.param == "max_profiles"
        await other.profiles.put("a", SteeringSpec(), "another description")
        await store.in_namespace("elsewhere", Writer("one", max_profiles=2)).profiles.put("c", SteeringSpec())
        await one.profiles.delete("b")
        await one.profiles.put("c", SteeringSpec())

    async def test_profiles_count_in_what_a_key_has_stored(self, store: Store) -> None:
        await put_vectors(store.in_namespace("team"), "a")
        size = len(write_steering(large := steering({"vector": "a", "strength": 1.0})))
        place = store.in_namespace("team", Writer("key", max_bytes=2 * size + 1))
        for name in ("a", "b", "b"):  # what replaces a profile counts in its place
            await place.profiles.put(name, large)
        with pytest.raises(StorageFull) as refusal:
            await place.profiles.put("c", large)
        assert refusal.value.param == "storage_bytes"
        with pytest.raises(StorageFull):
            await place.links.put("abcdefghijklmnop", "compare", {"a": "b"})
        await place.profiles.delete("a")
        await place.profiles.put("c", large)

    async def test_pages_end_at_their_limit_and_names_need_no_steering(self, store: Store) -> None:
        for name in ("c", "a", "b"):
            await store.shared.profiles.put(name, SteeringSpec(), f"about {name}")
        await store.in_namespace("team").profiles.put("b", SteeringSpec())
        team = store.in_namespace("team").profiles
        first = await team.find(2)
        assert [(one.namespace, one.name) for one in first.items] == [("shared", "a"), ("team", "b")]
        rest = await team.find(2, first.next_cursor)
        assert ([one.name for one in rest.items], rest.next_cursor) == (["c"], None)
        assert await team.names(2) == (ProfileName("shared", "a", "about a"), ProfileName("team", "b", ""))
        with pytest.raises(InvalidRequest):
            await store.shared.jobs.find(2, first.next_cursor)

    async def test_a_page_of_large_profiles_is_shorter(self, store: Store) -> None:
        await put_vectors(store.shared, "a")
        part = [{"vector": "a", "strength": 1.0, "layers": list(range(256))} for _ in range(64)]
        large = steering(*part)
        count = PAGE_BYTES // len(write_steering(large)) + 2
        for number in range(count):
            await store.shared.profiles.put(f"p{number:03}", large)
        first = await store.shared.profiles.find(200)
        assert 0 < len(first.items) < count
        rest = await store.shared.profiles.find(200, first.next_cursor)
        assert len(first.items) + len(rest.items) == count

    async def test_all_are_ordered_by_name(self, store: Store) -> None:
        for name in ("b_1", "a", "b-1", "b.1"):
            await store.shared.profiles.put(name, SteeringSpec())
        assert [profile.name for profile in (await store.shared.profiles.find()).items] == ["a", "b-1", "b.1", "b_1"]
        await store.shared.profiles.delete("a")
        assert len((await store.shared.profiles.find()).items) == 3

    async def test_a_missing_record_is_reported(self, store: Store) -> None:
        with pytest.raises(ProfileNotFound):
            await store.shared.profiles.get("cheerful")
        with pytest.raises(ProfileNotFound):
            await store.shared.profiles.delete("cheerful")

    async def test_the_default_steering_is_one_or_none(self, store: Store) -> None:
        assert await store.shared.profiles.default() is None
        await put_vectors(store.shared, "a", "b")
        await store.shared.profiles.set_default(steering({"vector": "a"}))
        await store.shared.profiles.set_default(steering({"vector": "b"}))
        assert await store.shared.profiles.default() == steering({"vector": "b"})
        await store.shared.profiles.set_default(SteeringSpec())
        assert await store.shared.profiles.default() == SteeringSpec()
        await store.shared.profiles.set_default(None)
        await store.shared.profiles.set_default(None)
        assert await store.shared.profiles.default() is None


class TestJobs:
    async def test_a_put_creates_then_replaces(self, store: Store) -> None:
        first = await store.shared.jobs.put(
            JobRecord(id="job-1", kind="extract", status="queued", request={"name": "warmth", "x": [1, 0.1]})
        )
        assert first.created_at != ""
        progress = JobProgress(done=2, total=2)
        change = {"status": "succeeded", "progress": progress, "result": {"vector": "warmth@1"}}
        done = first.model_copy(update=change)
        second = await store.shared.jobs.put(done)
        back = await store.shared.jobs.get("job-1")
        assert back == second == done.model_copy(update={"updated_at": second.updated_at})
        assert back.created_at == first.created_at

    async def test_the_record_is_no_longer_the_callers(self, store: Store) -> None:
        request = {"name": "warmth"}
        await store.shared.jobs.put(JobRecord(id="job-1", kind="extract", status="running", request=request))
        request["name"] = "cold"
        assert (await store.shared.jobs.get("job-1")).request == {"name": "warmth"}

    async def test_lists_newest_first_in_pages(self, store: Store) -> None:
        for index in range(5):
            await store.shared.jobs.put(JobRecord(id=f"job-{index}", kind="extract", status="queued"))
        await store.shared.jobs.put(JobRecord(id="job-0", kind="extract", status="running"))
        first = await store.shared.jobs.find(2)
        await store.shared.jobs.put(JobRecord(id="job-5", kind="extract", status="queued"))
        rest = await store.shared.jobs.find(3, first.next_cursor)
        assert [job.id for job in first.items + rest.items] == ["job-4", "job-3", "job-2", "job-1", "job-0"]
        assert rest.next_cursor is None

    async def test_a_record_that_has_ended_stays_as_it_is(self, store: Store) -> None:
        ended = await store.shared.jobs.put(JobRecord(id="job-1", kind="extract", status="cancelled"))
        assert (
            await store.shared.jobs.put(ended.model_copy(update={"status": "succeeded", "result": {"x": 1}})) == ended
        )
        assert await store.shared.jobs.get("job-1") == ended

    async def test_what_cannot_be_is_refused(self, store: Store) -> None:
        for wrong in (
            JobRecord(id="job 1", kind="extract", status="queued"),
            JobRecord(id="job-1", kind="extract", status="queued", result={"x": float("inf")}),
            JobRecord(id="job-1", kind="extract", status="queued", owner="x" * 65),
            JobRecord(id="job-1", kind="extract", status="queued", result={"x": "\ud800"}),
        ):
            with pytest.raises(InvalidRequest):
                await store.shared.jobs.put(wrong)
        for missing in ("job-1", "", "../x", "\x00", "\ud800"):
            with pytest.raises(JobNotFound):
                await store.shared.jobs.get(missing)
