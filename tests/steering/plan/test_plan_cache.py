"""A plan that was resolved lately is found again, and only while everything it was made of is the same."""

from dataclasses import replace

import pytest

from steering.errors import VectorNotFound
from steering.model.info import ModelInfo
from steering.plan.resolve import RecentPlans
from steering.plan.types import DoseGuard
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from tests.plans import Vectors, vectors_for

INFO = ModelInfo("tiny", "Llama", "f" * 64, 16, 4, 100, 256, "float32", "cpu", 1000, True, (10.0, 20.0, 30.0, 40.0))
GUARD = DoseGuard()


def stored(version: int = 1) -> dict[str, ConceptVector]:
    """Vectors as a store gives them: with a version and a digest."""
    found = vectors_for(INFO)
    return {name: replace(vector, version=version, sha256=f"{name}-{version}") for name, vector in found.items()}


def spec(strength: float = 1.0) -> SteeringSpec:
    return SteeringSpec.model_validate({"interventions": [{"vector": "alpha", "strength": strength, "layers": [1]}]})


async def test_the_same_steering_is_resolved_once() -> None:
    plans, vectors = RecentPlans(), Vectors(stored())
    first = await plans.resolve(spec(), vectors, INFO, GUARD)
    assert await plans.resolve(spec(), vectors, INFO, GUARD) is first


async def test_what_differs_is_resolved_anew() -> None:
    plans, vectors = RecentPlans(), Vectors(stored())
    first = await plans.resolve(spec(), vectors, INFO, GUARD)
    others = [
        await plans.resolve(spec(0.5), vectors, INFO, GUARD),
        await plans.resolve(spec(), Vectors(stored(version=2)), INFO, GUARD),
        await plans.resolve(spec(), vectors, INFO, DoseGuard(action="off")),
        await plans.resolve(spec(), vectors, replace(INFO, typical_norms=(1.0, 1.0, 1.0, 1.0)), GUARD),
    ]
    assert all(other is not first for other in others)
    assert others[1].interventions[0].spec.vector == "alpha@2"


async def test_a_vector_that_is_gone_is_not_found_however_lately_it_was_used() -> None:
    plans = RecentPlans()
    await plans.resolve(spec(), Vectors(stored()), INFO, GUARD)
    with pytest.raises(VectorNotFound):
        await plans.resolve(spec(), Vectors({}), INFO, GUARD)


async def test_the_longest_unused_is_forgotten_first() -> None:
    plans, vectors = RecentPlans(2), Vectors(stored())
    first, second = [await plans.resolve(spec(strength), vectors, INFO, GUARD) for strength in (0.1, 0.2)]
    assert await plans.resolve(spec(0.1), vectors, INFO, GUARD) is first
    await plans.resolve(spec(0.3), vectors, INFO, GUARD)
    assert await plans.resolve(spec(0.1), vectors, INFO, GUARD) is first
    assert await plans.resolve(spec(0.2), vectors, INFO, GUARD) is not second


async def test_plans_of_many_bytes_are_forgotten_before_there_are_many_plans() -> None:
    vectors = Vectors(stored())
    large = (await RecentPlans().resolve(spec(), vectors, INFO, GUARD)).tensor_bytes
    assert large == 4 * (16 + 16 + 3)
    plans = RecentPlans(most_bytes=2 * large)
    first, second, third = [await plans.resolve(spec(one), vectors, INFO, GUARD) for one in (0.1, 0.2, 0.3)]
    assert await plans.resolve(spec(0.2), vectors, INFO, GUARD) is second
    assert await plans.resolve(spec(0.3), vectors, INFO, GUARD) is third
    assert await plans.resolve(spec(0.1), vectors, INFO, GUARD) is not first


async def test_a_plan_of_more_bytes_than_the_cache_may_have_is_kept_alone() -> None:
    plans, vectors = RecentPlans(most_bytes=100), Vectors(stored())
    first = await plans.resolve(spec(0.1), vectors, INFO, GUARD)
    assert await plans.resolve(spec(0.1), vectors, INFO, GUARD) is first
    await plans.resolve(spec(0.2), vectors, INFO, GUARD)
    assert await plans.resolve(spec(0.1), vectors, INFO, GUARD) is not first
