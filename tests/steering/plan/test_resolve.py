"""Resolving a spec: names once, layers checked, order kept, doses known, fingerprints that say what is the same."""

import asyncio
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.errors import InvalidRequest, LimitExceeded, VectorModelMismatch, VectorNotFound
from steering.model.info import ModelInfo
from steering.plan.edits import joint_basis
from steering.plan.resolve import Mandatory, RecentPlans, resolve
from steering.plan.types import UNSTEERED, DoseGuard, SteeringPlan
from steering.spec import SteeringSpec, vector_names
from tests.plans import Vectors, random_items, vectors_for
from tests.steering.plan.planning import INFO, plan_of


async def test_the_order_of_interventions_changes_nothing() -> None:
    items: list[dict[str, Any]] = [
        {"vector": "alpha", "layers": [1]},
        {"vector": "beta", "strength": -0.5, "layers": [1]},
        {"vector": "alpha", "operation": "clamp", "low": 0.0, "high": 1.0, "layers": [1]},
        {"vector": "gamma", "operation": "ablate", "layers": [1]},
        {"vector": "alpha", "operation": "rotate", "degrees": 5.0, "layers": [1, 2]},
        {"vector": "delta", "operation": "ablate", "layers": [1]},
    ]
    plans = [await plan_of(*order) for order in (items, items[::-1], items[3:] + items[:3])]
    assert len({plan.fingerprint for plan in plans}) == len({plan.prompt_fingerprint for plan in plans}) == 1
    for plan in plans[1:]:
        for one, other in zip(plan.layers[1], plans[0].layers[1], strict=True):
            assert torch.equal(one.write, other.write)


async def test_equal_removals_at_a_layer_are_over_a_basis_of_their_span() -> None:
    plan = await plan_of(
        {"vector": "gamma", "operation": "ablate", "layers": [2]},
        {"vector": "alpha", "layers": [2]},
        {"vector": "delta", "operation": "ablate", "layers": [1, 2]},
        {"vector": "beta", "operation": "ablate", "strength": 0.5, "layers": [2]},
    )
    found = {one.interventions: one for one in plan.layers[2]}
    assert set(found) == {(0, 2), (1,), (3,)}
    basis = found[0, 2].write
    torch.testing.assert_close(basis @ basis.T, torch.eye(2), rtol=0, atol=1e-5)
    assert [one.interventions for one in plan.layers[1]] == [(2,)]


async def test_strength_zero_is_no_steering() -> None:
    plan = await plan_of(
        {"vector": "alpha", "strength": 0.0}, {"vector": "beta", "operation": "ablate", "strength": 0.0}
    )
    assert plan.empty
    assert plan.fingerprint == UNSTEERED.fingerprint == ""
    assert len(plan.interventions) == 2


@pytest.mark.parametrize(
    ("scope", "shared"),
    [
        ({"tokens": "generated"}, True),
        ({"tokens": "last"}, True),
        ({"tokens": "generated", "start": 2}, True),
        ({"tokens": "all"}, False),
        ({"tokens": "prompt"}, False),
    ],
)
async def test_prompt_fingerprint_is_empty_where_the_prompt_is_untouched(scope: dict[str, Any], shared: bool) -> None:
    plan = await plan_of({"vector": "alpha", "scope": scope})
    assert (plan.prompt_fingerprint == "") is shared
    waiting = await plan_of({"vector": "alpha", "scope": scope, "when": {"vector": "beta", "above": 0.0}})
    assert waiting.prompt_fingerprint == "", "a decision at the prompt's end cannot touch what is before it"


async def test_fingerprints_tell_apart_what_differs_and_nothing_else() -> None:
    base: dict[str, Any] = {"vector": "alpha", "layers": [1]}
    same = [base, {**base, "strength": 1.0}, {**base, "layers": [-3]}, {**base, "layers": {"from": 1, "to": 2}}]
    assert len({(await plan_of(item)).fingerprint for item in same}) == 1
    different = [
        base,
        {**base, "strength": 0.9},
        {**base, "vector": "beta"},
        {**base, "layers": [2]},
        {**base, "unit": "raw"},
        {**base, "unit": "relative"},
        {**base, "scope": {"tokens": "prompt"}},
        {**base, "operation": "ablate"},
        {**base, "operation": "clamp", "low": 0.0},
        {**base, "operation": "clamp", "high": 0.0},
        {**base, "schedule": {"kind": "linear", "tokens": 4}},
        {**base, "schedule": {"kind": "linear", "tokens": 5}},
        {**base, "when": {"vector": "beta", "above": 0.0}},
        {**base, "when": {"vector": "beta", "below": 0.0}},
        {**base, "when": {"vector": "beta", "above": 0.0, "at": "token", "layer": 0}},
        {**base, "when": {"not": {"vector": "beta", "above": 0.0}}},
    ]
    assert len({(await plan_of(item)).fingerprint for item in different}) == len(different)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"vector": "alpha", "layers": [4]}, "layers 0 to 3"),
        ({"vector": "alpha", "layers": [-5]}, "layers 0 to 3"),
        ({"vector": "alpha", "layers": {"from": 3, "to": 1}}, "is empty"),
        ({"vector": "alpha", "operation": "melt"}, "add, ablate, clamp, rotate, replace"),
        ({"vector": "alpha", "low": 1.0}, "takes no low"),
        ({"vector": "alpha", "operation": "rotate"}, "needs degrees"),
        ({"vector": "alpha", "operation": "replace"}, "needs to"),
        ({"vector": "alpha", "operation": "clamp"}, "low"),
        ({"vector": "alpha", "operation": "clamp", "low": 2.0, "high": 1.0}, "low <= high"),
        ({"vector": "alpha", "operation": "rotate", "degrees": 400.0}, "180"),
        ({"vector": "alpha", "when": {"vector": "beta", "above": 0.0, "score": "smell"}}, "projection, cosine, probe"),
        (
            {"vector": "alpha", "layers": [0], "when": {"vector": "beta", "above": 0, "at": "token", "layer": 2}},
            "later",
        ),
    ],
)
async def test_what_cannot_be_is_refused_in_words(item: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await plan_of(item)


@given(seed=st.integers(0, 100_000))
def test_a_spec_survives_json_and_resolves_to_the_same_plan_once_pinned(seed: int) -> None:
    spec = SteeringSpec.model_validate({"interventions": random_items(seed, INFO.layer_count)})
    assert SteeringSpec.model_validate_json(spec.model_dump_json()) == spec

    async def both() -> tuple[SteeringPlan, SteeringPlan]:
        source = Vectors(vectors_for(INFO))
        plan = await resolve(spec, source, INFO)
        return plan, await resolve(plan.spec, source, INFO)

    plan, again = asyncio.run(both())
    assert again.fingerprint == plan.fingerprint
    assert again.spec == plan.spec
    assert set(plan.vectors) == set(vector_names(plan.spec))


async def test_unknown_vectors_and_other_models() -> None:
    for item in (
        {"vector": "nobody"},
        {"vector": "alpha", "operation": "replace", "to": "nobody"},
        {"vector": "alpha", "when": {"any": [{"not": {"vector": "nobody", "above": 0.0}}]}},
    ):
        with pytest.raises(VectorNotFound, match="nobody"):
            await plan_of(item)
    other = ModelInfo("other", "Llama", "0" * 64, 16, 4, 100, 256, "float32", "cpu", 1000, True)
    with pytest.raises(VectorModelMismatch, match="tiny"):
        await plan_of({"vector": "alpha"}, info=other)


async def test_plans_are_bounded_before_they_are_built() -> None:
    many: dict[str, Any] = {"vector": "alpha", "layers": "all"}
    big = ModelInfo("big", "Llama", INFO.fingerprint, 16, 80, 100, 256, "float32", "cpu", 1000, True)
    spec = SteeringSpec.model_validate({"interventions": [many] * 64})
    with pytest.raises(LimitExceeded, match="act 5120 times"):
        await resolve(spec, Vectors(vectors_for(big)), big)
    costly = SteeringSpec.model_validate({"interventions": [{**many, "operation": "ablate"}] * 4})
    with pytest.raises(LimitExceeded, match="320 operations are computed at every token"):
        await resolve(costly, Vectors(vectors_for(big)), big)
    test = {"vector": "beta", "above": 0.0}
    pair = {"vector": "alpha", "when": {"any": [{"all": [test] * 7}] * 4}}
    with pytest.raises(LimitExceeded, match="66 nodes together"):
        await plan_of(pair, pair)
    with pytest.raises(ValueError, match="at most 64"):
        SteeringSpec.model_validate(
            {"interventions": [{"vector": "alpha", "when": {"any": [{"all": [test] * 8}] * 8}}]}
        )


@pytest.mark.parametrize("angle", [0.0, 1e-6, 3e-3])
async def test_ablations_of_nearly_equal_directions_are_one_or_exact(angle: float) -> None:
    """Two equal directions span one dimension, not one and a row of rounding noise."""
    vectors = vectors_for(INFO)
    one, across = vectors["alpha"].layers[1].direction, vectors["beta"].layers[1].direction
    across = torch.nn.functional.normalize(across - (across @ one) * one, dim=0)
    turned = torch.cos(torch.tensor(angle)) * one + torch.sin(torch.tensor(angle)) * across
    basis = joint_basis([one, turned])
    assert len(basis) == (1 if angle < 1e-4 else 2)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), rtol=0, atol=1e-6)
    residual = torch.randn(16, generator=torch.Generator().manual_seed(0))
    left = residual - basis.T @ (basis @ residual)
    assert abs(float(left @ one)) < 1e-5
    if angle < 1e-4:
        torch.testing.assert_close(left, residual - (residual @ one) * one, rtol=0, atol=1e-5)


async def test_what_the_guard_bounds_is_part_of_both_fingerprints() -> None:
    """Engine A3: vLLM hashes both into its cached blocks. One intervention of the request's own each, and the same two calls."""
    spin: dict[str, Any] = {"operation": "rotate", "degrees": 3.0, "layers": [1]}
    x, y = ({"vector": name, **spin} for name in ("alpha", "beta"))
    idle = {**x, "vector": "gamma", "strength": 0.0}
    found: list[SteeringPlan] = []
    for own, mandatory in (([x], [y]), ([idle], [x, y])):
        specs = [SteeringSpec.model_validate({"interventions": items}) for items in (own, mandatory)]
        source, added = Vectors(vectors_for(INFO)), Mandatory(specs[1], vectors_for(INFO))
        found.append(await RecentPlans(1).resolve(specs[0], source, INFO, DoseGuard(0.05, "clamp"), added))
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0].prompt_fingerprint != found[1].prompt_fingerprint
