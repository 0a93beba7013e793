"""What every store promises, run over the STORES table."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steering.errors import (
    InvalidRequest,
    JobNotFound,
    LimitExceeded,
    ProfileNotFound,
    VectorInUse,
    VectorNotFound,
)
from steering.quality import DosePoint, LayerQuality, QualityCard, Recommended
from steering.spec import InterventionSpec, SteeringSpec
from steering.store import STORES
from steering.store.base import JobRecord, Profile, Store, VectorFilter
from steering.store.opening import open_store
from steering.vectors import ConceptVector, LayerDirection

PLACES = {"memory": "memory://", "sqlite": "sqlite:///{folder}/store.sqlite3"}
NEEDS_A_SERVER = {"postgresql"}
EVERYTHING = VectorFilter()
BAD_NAMES = ["", ".", "..", "../x", "a/b", "%2e%2e", "a\x00b", "A", "-a", "a" * 65, "a b", "nul\n", "а"]


def a_vector(name: str = "warmth", seed: int = 0, **said: object) -> ConceptVector:
    """Three layers of random unit directions with awkward numbers beside them."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for layer in (2, 10, 11):
        values = torch.randn(16, generator=generator)
        layers[layer] = LayerDirection(
            values / values.norm(), scale=0.1 + seed + layer, positive_mean=1 / 3, negative_mean=-1e-17, weight=None
        )
    return replace(ConceptVector(name, "tiny", "sha:1", 16, "mean_difference", layers), **said)  # type: ignore[arg-type]


def steering(*interventions: dict[str, object]) -> SteeringSpec:
    return SteeringSpec.model_validate({"interventions": list(interventions)})


@pytest.fixture(params=sorted(set(STORES) - NEEDS_A_SERVER))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(PLACES[request.param].format(folder=tmp_path))
    yield opened
    await opened.close()


async def names(store: Store, where: VectorFilter = EVERYTHING) -> list[str]:
    return [vector.name for vector in (await store.vectors.find(where)).vectors]


def test_every_store_has_a_place_here() -> None:
    assert set(STORES) == set(PLACES) | NEEDS_A_SERVER


async def test_an_unknown_scheme_is_refused_without_repeating_the_url() -> None:
    with pytest.raises(InvalidRequest, match="sqlite") as refusal:
        await open_store("mongodb://me:secret@host/x")
    assert "secret" not in refusal.value.message


class TestVectors:
    async def test_comes_back_bit_for_bit_with_everything_it_carries(self, store: Store) -> None:
        card = QualityCard(
            pairs=40,
            holdout=12,
            layers={2: LayerQuality(0.98, (0.91, 1.0), 3.1, 0.8, 0.52), 10: LayerQuality()},
            dose_response=(DosePoint(0.5, 0.7, (0.6, 0.8), 1.2, 0.01, 0.4, 0.3),),
            anti_steered=0.07,
            warnings=("few pairs: “12”",),
        )
        given = a_vector(
            description="Wärme\n🙂",
            tags=("b", "a.1"),
            quality=card,
            recommended=Recommended((10, 11), (0.25, 1.0)),
            provenance={"seed": 7, "holdout": 0.3, "deep": [{"x": [1.5, None, True]}]},
        )
        given = replace(given, layers={**given.layers, 2: replace(given.layers[2], weight=1e-300, bias=-0.0)})
        put = await store.vectors.put(given)
        for back in (put, await store.vectors.get("warmth"), await store.vectors.get("warmth", 1)):
            assert back.id == "warmth@1"
            assert back.created_at.endswith("Z")
            assert len(back.sha256) == 64
            assert list(back.layers) == [2, 10, 11]
            for layer, entry in given.layers.items():
                assert back.layers[layer].direction.dtype == torch.float32
                assert torch.equal(back.layers[layer].direction, entry.direction)
                for field in ("scale", "positive_mean", "negative_mean", "weight", "bias"):
                    assert repr(getattr(back.layers[layer], field)) == repr(getattr(entry, field))
            for field in ("model", "model_fingerprint", "d_model", "method", "description", "tags"):
                assert getattr(back, field) == getattr(given, field)
            for field in ("recommended", "quality", "provenance"):
                assert getattr(back, field) == getattr(given, field)
        assert put.sha256 == (await store.vectors.get("warmth")).sha256

    async def test_the_digest_identifies_the_content_not_what_is_said_about_it(self, store: Store) -> None:
        one = await store.vectors.put(a_vector("one", seed=3, description="first", tags=("x",)))
        other = await store.vectors.put(a_vector("other", seed=3))
        different = await store.vectors.put(a_vector("one", seed=4))
        assert one.sha256 == other.sha256 != different.sha256

    async def test_a_put_makes_the_next_version_and_rewrites_none(self, store: Store) -> None:
        first = await store.vectors.put(a_vector(seed=1))
        second = await store.vectors.put(a_vector(seed=2))
        assert (first.version, second.version) == (1, 2)
        assert (await store.vectors.get("warmth")).version == 2
        back = await store.vectors.get("warmth", 1)
        assert back.sha256 == first.sha256
        assert torch.equal(back.layers[2].direction, first.layers[2].direction)

    async def test_many_puts_at_once_each_get_a_version_of_their_own(self, store: Store) -> None:
        puts = await asyncio.gather(*(store.vectors.put(a_vector(seed=seed)) for seed in range(20)))
        assert sorted(put.version for put in puts) == list(range(1, 21))
        for put in puts:
            assert (await store.vectors.get("warmth", put.version)).sha256 == put.sha256

    async def test_what_is_missing_is_said_to_be_missing(self, store: Store) -> None:
        await store.vectors.put(a_vector())
        for name, version in (("cold", None), ("warmth", 2), ("warmth", 0), ("warmth", -1), ("warmth", 10**30)):
            with pytest.raises(VectorNotFound):
                await store.vectors.get(name, version)
        with pytest.raises(VectorNotFound):
            await store.vectors.describe("cold", "x", None)
        with pytest.raises(VectorNotFound):
            await store.vectors.delete("cold")

    @pytest.mark.parametrize("name", BAD_NAMES)
    async def test_names_that_are_no_names_are_refused(self, store: Store, name: str) -> None:
        for call in (store.vectors.get, store.vectors.delete, store.profiles.get, store.profiles.delete):
            with pytest.raises(InvalidRequest):
                await call(name)
        with pytest.raises(InvalidRequest):
            await store.vectors.describe(name, "x", None)
        with pytest.raises(InvalidRequest):
            await store.profiles.put(Profile(name, SteeringSpec()))
        with pytest.raises(InvalidRequest):
            await store.vectors.put(a_vector(tags=(name,)))

    async def test_directions_that_are_no_directions_are_refused(self, store: Store) -> None:
        entry = a_vector().layers[2]
        for wrong in (
            replace(entry, direction=2 * entry.direction),
            replace(entry, direction=entry.direction.double()),
        ):
            with pytest.raises(InvalidRequest, match="layer 2"):
                await store.vectors.put(a_vector(layers={2: wrong}))
        with pytest.raises(InvalidRequest, match="JSON"):
            await store.vectors.put(a_vector(provenance={"loss": float("nan")}))
        assert await names(store) == []


class TestFinding:
    @pytest.fixture
    async def filled(self, store: Store) -> Store:
        await store.vectors.put(a_vector("b_2", description="50% Warm_th", tags=("warm", "x")))
        await store.vectors.put(a_vector("a.1", description="STRASSE und ÉCLAIR", tags=("warm_er",)))
        await store.vectors.put(a_vector("bx2", description="plain", tags=("cold",), method="pca"))
        await store.vectors.put(a_vector("a-1", description="old words", tags=("warm",)))
        await store.vectors.put(a_vector("a-1", description="new words", tags=(), method="probe"))
        return store

    async def test_the_newest_of_each_name_ordered_by_name(self, filled: Store) -> None:
        page = await filled.vectors.find(EVERYTHING)
        assert [vector.id for vector in page.vectors] == ["a-1@2", "a.1@1", "b_2@1", "bx2@1"]
        assert page.next_cursor is None

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (VectorFilter(tag="warm"), ["b_2"]),
            (VectorFilter(tag="warm_er"), ["a.1"]),
            (VectorFilter(tag="war"), []),
            (VectorFilter(method="pca"), ["bx2"]),
            (VectorFilter(method="mean"), []),
            (VectorFilter(search="50%"), ["b_2"]),
            (VectorFilter(search="%"), ["b_2"]),
            (VectorFilter(search="b_2"), ["b_2"]),
            (VectorFilter(search="_"), ["b_2"]),
            (VectorFilter(search="/"), []),
            (VectorFilter(search="\\"), []),
            (VectorFilter(search="WORDS"), ["a-1"]),
            (VectorFilter(search="old"), []),
            (VectorFilter(search="straße"), ["a.1"]),
            (VectorFilter(search="éclair"), ["a.1"]),
            (VectorFilter(search="'; DROP TABLE vectors; --"), []),
            (VectorFilter(search=""), ["a-1", "a.1", "b_2", "bx2"]),
            (VectorFilter(tag="warm", method="mean_difference", search="warm"), ["b_2"]),
            (VectorFilter(tag="warm", method="pca"), []),
        ],
    )
    async def test_every_given_field_must_match_literally(
        self, filled: Store, where: VectorFilter, expected: list[str]
    ) -> None:
        assert await names(filled, where) == expected

    @pytest.mark.parametrize(
        "where",
        [
            VectorFilter(search="a\x00"),
            VectorFilter(search="\ud800"),
            VectorFilter(search="x" * 257),
            VectorFilter(tag="' OR 1=1"),
            VectorFilter(tag="WARM"),
            VectorFilter(method="pca\x00"),
        ],
    )
    async def test_filters_that_nothing_could_match_are_refused(self, filled: Store, where: VectorFilter) -> None:
        with pytest.raises(InvalidRequest):
            await filled.vectors.find(where)

    async def test_pages_follow_each_other_without_gap_or_repeat(self, filled: Store) -> None:
        seen: list[str] = []
        cursor = None
        for size in (1, 2, 1):
            page = await filled.vectors.find(EVERYTHING, size, cursor)
            seen += [vector.name for vector in page.vectors]
            cursor = page.next_cursor
        assert seen == ["a-1", "a.1", "b_2", "bx2"]
        assert cursor is None
        with pytest.raises(InvalidRequest):
            await filled.vectors.find(EVERYTHING, 0)
        with pytest.raises(LimitExceeded):
            await filled.vectors.find(EVERYTHING, 201)

    async def test_a_page_goes_on_where_its_last_name_was_deleted(self, filled: Store) -> None:
        page = await filled.vectors.find(EVERYTHING, 2)
        await filled.vectors.delete("a.1")
        assert [vector.name for vector in (await filled.vectors.find(EVERYTHING, 2, page.next_cursor)).vectors] == [
            "b_2",
            "bx2",
        ]

    async def test_a_cursor_it_did_not_give_out_is_refused(self, filled: Store) -> None:
        for index in range(2):
            await filled.jobs.put(JobRecord(f"job-{index}", "extract", "queued"))
        _, of_jobs = await filled.jobs.find(1)
        of_vectors = (await filled.vectors.find(EVERYTHING, 1)).next_cursor
        assert of_jobs is not None
        assert of_vectors is not None
        for wrong in ("", "x", "a-1", of_jobs, of_vectors + "=", of_vectors[:-1], "é", "\ud800", "A" * 10_000):
            with pytest.raises(InvalidRequest):
                await filled.vectors.find(EVERYTHING, 1, wrong)
        for wrong in ("", of_vectors, "am9iOng="):
            with pytest.raises(InvalidRequest):
                await filled.jobs.find(1, wrong)


class TestDescribing:
    async def test_changes_every_version_and_no_number(self, store: Store) -> None:
        first = await store.vectors.put(a_vector(seed=1, description="a", tags=("x",)))
        await store.vectors.put(a_vector(seed=2, description="b", tags=("y",)))
        said = await store.vectors.describe("warmth", "c", ("z", "w"))
        assert (said.version, said.description, said.tags) == (2, "c", ("z", "w"))
        back = await store.vectors.get("warmth", 1)
        assert (back.description, back.tags, back.sha256) == ("c", ("z", "w"), first.sha256)
        assert back.created_at == first.created_at
        assert await names(store, VectorFilter(tag="z", search="C")) == ["warmth"]
        assert await names(store, VectorFilter(tag="y")) == []

    async def test_none_leaves_a_field_as_it_is_and_empty_clears_it(self, store: Store) -> None:
        await store.vectors.put(a_vector(description="a", tags=("x",)))
        said = await store.vectors.describe("warmth", None, ())
        assert (said.description, said.tags) == ("a", ())
        said = await store.vectors.describe("warmth", "", None)
        assert (said.description, said.tags) == ("", ())
        assert (await store.vectors.describe("warmth", None, None)).description == ""

    async def test_what_cannot_be_said_changes_nothing(self, store: Store) -> None:
        await store.vectors.put(a_vector(description="a", tags=("x",)))
        wrong: list[tuple[str | None, tuple[str, ...] | None]] = [
            ("x" * 4097, None),
            ("\x00", None),
            ("\ud800", None),
            ("ok", ("x", "x")),
            ("ok", ("bad tag",)),
            ("ok", tuple(f"t{index}" for index in range(33))),
        ]
        for description, tags in wrong:
            with pytest.raises(InvalidRequest):
                await store.vectors.describe("warmth", description, tags)
        back = await store.vectors.get("warmth")
        assert (back.description, back.tags) == ("a", ("x",))


class TestDeleting:
    async def test_takes_all_versions_and_gives_no_number_out_again(self, store: Store) -> None:
        for seed in range(3):
            await store.vectors.put(a_vector(seed=seed))
        await store.vectors.delete("warmth")
        assert await names(store) == []
        with pytest.raises(VectorNotFound):
            await store.vectors.get("warmth", 1)
        assert (await store.vectors.put(a_vector())).version == 4
        with pytest.raises(VectorNotFound):
            await store.vectors.get("warmth", 3)

    @pytest.mark.parametrize(
        "user",
        [
            {"vector": "warmth"},
            {"vector": "warmth@1"},
            {"vector": "other", "operation": "replace", "to": "warmth@7"},
            {"vector": "other", "when": {"vector": "warmth", "above": 0.2}},
            {"vector": "other", "when": {"all": [{"not": {"any": [{"vector": "warmth@2", "below": 1.0}]}}]}},
        ],
    )
    async def test_refuses_while_a_profile_or_the_default_names_it(self, store: Store, user: dict[str, object]) -> None:
        await store.vectors.put(a_vector())
        await store.profiles.put(Profile("cheerful", steering({"vector": "else"}, user)))
        with pytest.raises(VectorInUse, match="cheerful"):
            await store.vectors.delete("warmth")
        await store.profiles.put(Profile("cheerful", steering({"vector": "warmth2"})))
        await store.profiles.set_default(steering(user))
        with pytest.raises(VectorInUse, match="default"):
            await store.vectors.delete("warmth")
        assert await names(store) == ["warmth"]
        await store.vectors.delete("warmth", force=True)
        assert await names(store) == []

    async def test_succeeds_once_nothing_names_it(self, store: Store) -> None:
        await store.vectors.put(a_vector())
        await store.profiles.put(Profile("cheerful", steering({"vector": "warmth"})))
        await store.profiles.set_default(steering({"vector": "warmth"}))
        await store.profiles.delete("cheerful")
        await store.profiles.set_default(None)
        await store.vectors.delete("warmth")


class TestProfiles:
    async def test_keeps_the_steering_as_it_was_written(self, store: Store) -> None:
        given = steering(
            {"vector": "warmth", "strength": 0.1, "schedule": {"kind": "linear", "to": 0.3, "tokens": 9}},
            {"vector": "warmth@2", "operation": "clamp", "low": -1e-17, "layers": {"from": -3, "to": -1}},
            {"vector": "a", "when": {"not": {"vector": "b", "above": 1.0, "at": "token", "until": 0.5}}},
            {"vector": "a", "layers": [1, 2], "scope": {"tokens": "generated", "start": 0, "end": 4}},
        )
        given = SteeringSpec(interventions=(*given.interventions, InterventionSpec(vector="built", layers="all")))
        put = await store.profiles.put(Profile("cheerful", given, "Fröhlich"))
        back = await store.profiles.get("cheerful")
        assert back == put
        assert (back.steering, back.description) == (given, "Fröhlich")
        assert back.steering.model_dump_json() == given.model_dump_json()

    async def test_a_second_put_replaces_and_remembers_the_first_day(self, store: Store) -> None:
        first = await store.profiles.put(Profile("cheerful", steering({"vector": "a"})))
        second = await store.profiles.put(Profile("cheerful", SteeringSpec()))
        assert second.created_at == first.created_at != ""
        assert second.updated_at >= first.updated_at
        assert (await store.profiles.get("cheerful")).steering == SteeringSpec()

    async def test_all_are_ordered_by_name(self, store: Store) -> None:
        for name in ("b_1", "a", "b-1", "b.1"):
            await store.profiles.put(Profile(name, SteeringSpec()))
        assert [profile.name for profile in await store.profiles.all()] == ["a", "b-1", "b.1", "b_1"]
        await store.profiles.delete("a")
        assert len(await store.profiles.all()) == 3

    async def test_what_is_missing_is_said_to_be_missing(self, store: Store) -> None:
        with pytest.raises(ProfileNotFound):
            await store.profiles.get("cheerful")
        with pytest.raises(ProfileNotFound):
            await store.profiles.delete("cheerful")

    async def test_the_default_steering_is_one_or_none(self, store: Store) -> None:
        assert await store.profiles.default() is None
        await store.profiles.set_default(steering({"vector": "a"}))
        await store.profiles.set_default(steering({"vector": "b"}))
        assert await store.profiles.default() == steering({"vector": "b"})
        await store.profiles.set_default(SteeringSpec())
        assert await store.profiles.default() == SteeringSpec()
        await store.profiles.set_default(None)
        await store.profiles.set_default(None)
        assert await store.profiles.default() is None


class TestJobs:
    async def test_a_put_creates_then_replaces(self, store: Store) -> None:
        first = await store.jobs.put(JobRecord("job-1", "extract", "queued", request={"name": "warmth", "x": [1, 0.1]}))
        assert first.created_at != ""
        done = replace(first, status="succeeded", progress={"done": 2, "total": 2}, result={"vector": "warmth@1"})
        second = await store.jobs.put(done)
        back = await store.jobs.get("job-1")
        assert back == second == replace(done, updated_at=second.updated_at)
        assert back.created_at == first.created_at

    async def test_the_record_is_no_longer_the_callers(self, store: Store) -> None:
        progress = {"done": 1}
        await store.jobs.put(JobRecord("job-1", "extract", "running", progress=progress))
        progress["done"] = 99
        assert (await store.jobs.get("job-1")).progress == {"done": 1}

    async def test_lists_newest_first_in_pages(self, store: Store) -> None:
        for index in range(5):
            await store.jobs.put(JobRecord(f"job-{index}", "extract", "queued"))
        await store.jobs.put(JobRecord("job-0", "extract", "running"))
        page, cursor = await store.jobs.find(2)
        await store.jobs.put(JobRecord("job-5", "extract", "queued"))
        rest, end = await store.jobs.find(3, cursor)
        assert [job.id for job in page + rest] == ["job-4", "job-3", "job-2", "job-1", "job-0"]
        assert end is None

    async def test_a_stop_marks_what_had_not_ended(self, store: Store) -> None:
        statuses = ("queued", "running", "succeeded", "failed", "cancelled")
        for status in statuses:
            await store.jobs.put(JobRecord(f"job-{status}", "extract", status, error=None))
        assert await store.jobs.interrupt() == 2
        for status in statuses:
            job = await store.jobs.get(f"job-{status}")
            if status in ("queued", "running"):
                assert job.status == "failed"
                assert job.error is not None
                assert job.error["code"] == "interrupted"
            else:
                assert (job.status, job.error) == (status, None)
        assert await store.jobs.interrupt() == 0

    async def test_what_cannot_be_is_refused(self, store: Store) -> None:
        for wrong in (
            JobRecord("job 1", "extract", "queued"),
            JobRecord("job-1", "extract", "paused"),
            JobRecord("job-1", "extract", "queued", result={"x": float("inf")}),
            JobRecord("job-1", "extract", "queued", result={"x": "\ud800"}),
        ):
            with pytest.raises(InvalidRequest):
                await store.jobs.put(wrong)
        for missing in ("job-1", "", "../x", "\x00", "\ud800"):
            with pytest.raises(JobNotFound):
                await store.jobs.get(missing)


async def test_it_answers_and_closes(store: Store) -> None:
    await store.ping()
