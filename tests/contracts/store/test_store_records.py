"""What every store promises of profiles, the default steering and jobs."""

from dataclasses import replace

import pytest

from steering.errors import (
    InvalidRequest,
    JobNotFound,
    ProfileNotFound,
)
from steering.spec import InterventionSpec, SteeringSpec
from steering.store.base import JobRecord, Profile, Store
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
        put = await store.shared.profiles.put(Profile("cheerful", given, "Fröhlich"))
        back = await store.shared.profiles.get("cheerful")
        assert back == put
        assert (back.steering, back.description) == (given, "Fröhlich")
        assert back.steering.model_dump_json() == given.model_dump_json()

    async def test_a_second_put_replaces_and_remembers_the_first_day(self, store: Store) -> None:
        await put_vectors(store.shared, "a")
        first = await store.shared.profiles.put(Profile("cheerful", steering({"vector": "a"})))
        second = await store.shared.profiles.put(Profile("cheerful", SteeringSpec()))
        assert second.created_at == first.created_at != ""
        assert second.updated_at >= first.updated_at
        assert (await store.shared.profiles.get("cheerful")).steering == SteeringSpec()

    async def test_all_are_ordered_by_name(self, store: Store) -> None:
        for name in ("b_1", "a", "b-1", "b.1"):
            await store.shared.profiles.put(Profile(name, SteeringSpec()))
        assert [profile.name for profile in (await store.shared.profiles.all())[0]] == ["a", "b-1", "b.1", "b_1"]
        await store.shared.profiles.delete("a")
        assert len((await store.shared.profiles.all())[0]) == 3

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
            JobRecord("job-1", "extract", "queued", request={"name": "warmth", "x": [1, 0.1]})
        )
        assert first.created_at != ""
        done = replace(first, status="succeeded", progress={"done": 2, "total": 2}, result={"vector": "warmth@1"})
        second = await store.shared.jobs.put(done)
        back = await store.shared.jobs.get("job-1")
        assert back == second == replace(done, updated_at=second.updated_at)
        assert back.created_at == first.created_at

    async def test_the_record_is_no_longer_the_callers(self, store: Store) -> None:
        progress = {"done": 1}
        await store.shared.jobs.put(JobRecord("job-1", "extract", "running", progress=progress))
        progress["done"] = 99
        assert (await store.shared.jobs.get("job-1")).progress == {"done": 1}

    async def test_lists_newest_first_in_pages(self, store: Store) -> None:
        for index in range(5):
            await store.shared.jobs.put(JobRecord(f"job-{index}", "extract", "queued"))
        await store.shared.jobs.put(JobRecord("job-0", "extract", "running"))
        page, cursor = await store.shared.jobs.find(2)
        await store.shared.jobs.put(JobRecord("job-5", "extract", "queued"))
        rest, end = await store.shared.jobs.find(3, cursor)
        assert [job.id for job in page + rest] == ["job-4", "job-3", "job-2", "job-1", "job-0"]
        assert end is None

    async def test_a_record_that_has_ended_stays_as_it_is(self, store: Store) -> None:
        ended = await store.shared.jobs.put(JobRecord("job-1", "extract", "cancelled"))
        assert await store.shared.jobs.put(replace(ended, status="succeeded", result={"x": 1})) == ended
        assert await store.shared.jobs.get("job-1") == ended

    async def test_what_cannot_be_is_refused(self, store: Store) -> None:
        for wrong in (
            JobRecord("job 1", "extract", "queued"),
            JobRecord("job-1", "extract", "paused"),
            JobRecord("job-1", "extract", "queued", result={"x": float("inf")}),
            JobRecord("job-1", "extract", "queued", owner="x" * 65),
            JobRecord("job-1", "extract", "queued", result={"x": "\ud800"}),
        ):
            with pytest.raises(InvalidRequest):
                await store.shared.jobs.put(wrong)
        for missing in ("job-1", "", "../x", "\x00", "\ud800"):
            with pytest.raises(JobNotFound):
                await store.shared.jobs.get(missing)
