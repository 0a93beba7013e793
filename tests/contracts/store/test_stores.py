"""What the store promises of vectors, on each database."""

import asyncio
from dataclasses import replace

import pytest
import torch

from steering.cards import DosePoint, LayerQuality, QualityCard, Recommended
from steering.errors import (
    InvalidRequest,
    VectorInUse,
    VectorNotFound,
)
from steering.spec import SteeringSpec
from steering.store import open_store
from steering.store.store import Store
from steering.vectors import ConceptVector
from tests.contracts.stores import a_vector, names, put_vectors, steering

BAD_NAMES = ["", ".", "..", "../x", "a/b", "%2e%2e", "a\x00b", "A", "-a", "a" * 65, "a b", "nul\n", "а"]


async def test_an_unknown_scheme_is_refused_without_repeating_the_url() -> None:
    with pytest.raises(InvalidRequest, match="sqlite") as refusal:
        await open_store("mongodb://me:secret@host/x")
    assert "secret" not in refusal.value.message


async def test_it_answers_and_closes(store: Store) -> None:
    await store.ping()


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
        put = await store.shared.vectors.put(given)
        for back in (put, await store.shared.vectors.get("warmth"), await store.shared.vectors.get("warmth", 1)):
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
        assert put.sha256 == (await store.shared.vectors.get("warmth")).sha256

    async def test_the_digest_identifies_the_content_not_what_is_described_about_it(self, store: Store) -> None:
        one = await store.shared.vectors.put(a_vector("one", seed=3, description="first", tags=("x",)))
        other = await store.shared.vectors.put(a_vector("other", seed=3))
        different = await store.shared.vectors.put(a_vector("one", seed=4))
        assert one.sha256 == other.sha256 != different.sha256

    async def test_a_put_makes_the_next_version_and_rewrites_none(self, store: Store) -> None:
        first = await store.shared.vectors.put(a_vector(seed=1))
        second = await store.shared.vectors.put(a_vector(seed=2))
        assert (first.version, second.version) == (1, 2)
        assert (await store.shared.vectors.get("warmth")).version == 2
        back = await store.shared.vectors.get("warmth", 1)
        assert back.sha256 == first.sha256
        assert torch.equal(back.layers[2].direction, first.layers[2].direction)

    async def test_many_puts_at_once_each_get_a_version_of_their_own(self, store: Store) -> None:
        puts = await asyncio.gather(*(store.shared.vectors.put(a_vector(seed=seed)) for seed in range(20)))
        assert sorted(put.version for put in puts) == list(range(1, 21))
        for put in puts:
            assert (await store.shared.vectors.get("warmth", put.version)).sha256 == put.sha256

    async def test_what_is_asked_at_once_is_what_each_asked_for_now(self, store: Store) -> None:
        for name, seed in (("warmth", 1), ("warmth", 2), ("frost", 3), ("frost", 4)):
            await store.shared.vectors.put(a_vector(name, seed=seed))
        asked = [("warmth", None), ("warmth", 1), ("frost", 2), ("frost", None), ("cold", None), ("frost", 9)] * 2

        async def found() -> list[str]:
            answers = await asyncio.gather(*(store.shared.vectors.get(*key) for key in asked), return_exceptions=True)
            return [f"{a.id} {a.description}" if isinstance(a, ConceptVector) else type(a).__name__ for a in answers]

        missing = ["VectorNotFound"] * 2
        assert await found() == (["warmth@2 ", "warmth@1 ", "frost@2 ", "frost@2 ", *missing]) * 2
        await store.shared.vectors.put(a_vector("warmth", seed=5))
        await store.shared.vectors.describe("frost", "hard", None)
        assert await found() == (["warmth@3 ", "warmth@1 ", "frost@2 hard", "frost@2 hard", *missing]) * 2
        await store.shared.vectors.delete("frost")
        assert await found() == (["warmth@3 ", "warmth@1 ", "VectorNotFound", "VectorNotFound", *missing]) * 2

    async def test_what_is_missing_is_described_to_be_missing(self, store: Store) -> None:
        await store.shared.vectors.put(a_vector())
        for name, version in (("cold", None), ("warmth", 2), ("warmth", 0), ("warmth", -1), ("warmth", 10**30)):
            with pytest.raises(VectorNotFound):
                await store.shared.vectors.get(name, version)
        with pytest.raises(VectorNotFound):
            await store.shared.vectors.describe("cold", "x", None)
        with pytest.raises(VectorNotFound):
            await store.shared.vectors.delete("cold")

    @pytest.mark.parametrize("name", BAD_NAMES)
    async def test_names_that_are_no_names_are_refused(self, store: Store, name: str) -> None:
        for call in (
            store.shared.vectors.get,
            store.shared.vectors.delete,
            store.shared.profiles.get,
            store.shared.profiles.delete,
        ):
            with pytest.raises(InvalidRequest):
                await call(name)
        with pytest.raises(InvalidRequest):
            await store.shared.vectors.describe(name, "x", None)
        with pytest.raises(InvalidRequest):
            await store.shared.profiles.put(name, SteeringSpec())
        with pytest.raises(InvalidRequest):
            await store.shared.vectors.put(a_vector(tags=(name,)))

    async def test_directions_that_are_no_directions_are_refused(self, store: Store) -> None:
        entry = a_vector().layers[2]
        for wrong in (
            replace(entry, direction=2 * entry.direction),
            replace(entry, direction=entry.direction.double()),
        ):
            with pytest.raises(InvalidRequest, match="layer 2"):
                await store.shared.vectors.put(a_vector(layers={2: wrong}))
        with pytest.raises(InvalidRequest, match="JSON"):
            await store.shared.vectors.put(a_vector(provenance={"loss": float("nan")}))
        assert await names(store) == []


class TestDescribing:
    async def test_changes_every_version_and_no_number(self, store: Store) -> None:
        first = await store.shared.vectors.put(a_vector(seed=1, description="a", tags=("x",)))
        await store.shared.vectors.put(a_vector(seed=2, description="b", tags=("y",)))
        described = await store.shared.vectors.describe("warmth", "c", ("z", "w"))
        assert (described.version, described.description, described.tags) == (2, "c", ("z", "w"))
        back = await store.shared.vectors.get("warmth", 1)
        assert (back.description, back.tags, back.sha256) == ("c", ("z", "w"), first.sha256)
        assert back.created_at == first.created_at
        assert await names(store, tag="z", search="C") == ["warmth"]
        assert await names(store, tag="y") == []

    async def test_none_leaves_a_field_as_it_is_and_empty_clears_it(self, store: Store) -> None:
        await store.shared.vectors.put(a_vector(description="a", tags=("x",)))
        described = await store.shared.vectors.describe("warmth", None, ())
        assert (described.description, described.tags) == ("a", ())
        described = await store.shared.vectors.describe("warmth", "", None)
        assert (described.description, described.tags) == ("", ())
        assert (await store.shared.vectors.describe("warmth", None, None)).description == ""

    async def test_what_cannot_be_described_changes_nothing(self, store: Store) -> None:
        await store.shared.vectors.put(a_vector(description="a", tags=("x",)))
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
                await store.shared.vectors.describe("warmth", description, tags)
        back = await store.shared.vectors.get("warmth")
        assert (back.description, back.tags) == ("a", ("x",))


class TestDeleting:
    async def test_takes_all_versions_and_gives_no_number_out_again(self, store: Store) -> None:
        for seed in range(3):
            await store.shared.vectors.put(a_vector(seed=seed))
        await store.shared.vectors.delete("warmth")
        assert await names(store) == []
        with pytest.raises(VectorNotFound):
            await store.shared.vectors.get("warmth", 1)
        assert (await store.shared.vectors.put(a_vector())).version == 4
        with pytest.raises(VectorNotFound):
            await store.shared.vectors.get("warmth", 3)

    @pytest.mark.parametrize(
        "user",
        [
            {"vector": "warmth"},
            {"vector": "warmth@1"},
            {"vector": "other", "operation": "replace", "to": "warmth@1"},
            {"vector": "other", "strength_from": {"vector": "warmth"}},
            {"vector": "other", "when": {"vector": "warmth", "above": 0.2}},
            {"vector": "other", "when": {"all": [{"not": {"any": [{"vector": "warmth@1", "below": 1.0}]}}]}},
        ],
    )
    async def test_refuses_while_a_profile_or_the_default_names_it(self, store: Store, user: dict[str, object]) -> None:
        await put_vectors(store.shared, "warmth", "other", "else", "warmth2")
        await store.shared.profiles.put("cheerful", steering({"vector": "else"}, user))
        with pytest.raises(VectorInUse, match="cheerful"):
            await store.shared.vectors.delete("warmth")
        await store.shared.profiles.put("cheerful", steering({"vector": "warmth2"}))
        await store.shared.profiles.set_default(steering(user))
        with pytest.raises(VectorInUse, match="default"):
            await store.shared.vectors.delete("warmth")
        await store.shared.vectors.delete("warmth", force=True)
        assert await names(store) == ["else", "other", "warmth2"]

    async def test_succeeds_once_nothing_names_it(self, store: Store) -> None:
        await store.shared.vectors.put(a_vector())
        await store.shared.profiles.put("cheerful", steering({"vector": "warmth"}))
        await store.shared.profiles.set_default(steering({"vector": "warmth"}))
        await store.shared.profiles.delete("cheerful")
        await store.shared.profiles.set_default(None)
        await store.shared.vectors.delete("warmth")
