"""Every operation and condition of the tables keeps the same promises, with no test written for it alone."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.conditions import CONDITIONS
from steering.errors import InvalidRequest
from steering.injection.injector import Injector
from steering.injection.slots import Slots
from steering.maps import LowRankMap
from steering.model.info import ModelInfo
from steering.operations import OPERATIONS
from steering.plan.types import SteeringPlan
from steering.shapes import Residual
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector, LayerDirection
from tests.plans import WORK, plan_for
from tests.steering.injection.passes import begun, row_of

D_MODEL = 24
INFO = ModelInfo("tiny", "Llama", "f" * 64, D_MODEL, 1, 100, 256, "float32", "cpu", 1000, True)


def vectors_of(seed: int, **fields: float) -> dict[str, ConceptVector]:
    """Two vectors at layer 0, with scales of their own."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, name in enumerate(("alpha", "beta")):
        direction = torch.nn.functional.normalize(torch.randn(D_MODEL, generator=generator), dim=0)
        # a map that writes along the direction and reads another
        linear = LowRankMap.of(direction.roll(1)[None], 2.0 * direction[None], torch.tensor([0.5]))
        layers = {0: LayerDirection(direction, scale=3.0 + number, map=linear, **fields)}
        found[name] = ConceptVector(
            name=name, model="tiny", model_fingerprint=INFO.fingerprint, d_model=D_MODEL, method="test", layers=layers,
            version=1,
        )  # fmt: skip
    return found


async def applied(
    residual: Residual, *items: dict[str, Any], vectors: dict[str, ConceptVector] | None = None
) -> Residual:
    """What the interventions make of residuals that are one prompt."""
    plan = await plan_for([{"vector": "alpha", **item} for item in items], vectors or vectors_of(0), INFO)
    return apply(residual, plan)


def apply(residual: Residual, plan: SteeringPlan) -> Residual:
    injector = Injector(Slots(1, residual.shape[1], torch.device("cpu")))
    row = row_of(plan, len(residual), 0)
    injector.admit(row)
    injection, _, _ = begun(injector, [(row, len(residual))])
    return injection.apply(0, residual) if injection.layers else residual


def residuals(tokens: int, seed: int = 0) -> Residual:
    return torch.randn(tokens, D_MODEL, generator=torch.Generator().manual_seed(seed)) * 5


def test_every_operation_is_in_the_test_plans() -> None:
    assert set(WORK) == set(OPERATIONS)


@pytest.mark.parametrize("name", list(OPERATIONS))
async def test_shape_and_dtype_are_kept_and_the_input_is_not_changed(name: str) -> None:
    residual = residuals(7)
    before = residual.clone()
    after = await applied(residual, WORK[name])
    assert after.shape == residual.shape
    assert after.dtype == torch.float32
    assert torch.equal(residual, before)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("seed", range(5))
async def test_rows_are_independent(name: str, seed: int) -> None:
    residual = residuals(6, seed)
    item = {**WORK[name], "strength": random.Random(seed).uniform(-1, 1)}
    together = await applied(residual, item)
    for row in range(6):
        alone = await applied(residual[row : row + 1], item)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(OPERATIONS))
async def test_strength_zero_is_the_identity(name: str) -> None:
    """Written so, in which case nothing is computed, and as the weight of a schedule that has ended."""
    residual = residuals(7)
    plan = await plan_for([{"vector": "alpha", **WORK[name], "strength": 0.0}], vectors_of(0), INFO)
    assert plan.empty
    ended = {"schedule": {"kind": "linear", "tokens": 1}, "scope": {"tokens": "generated"}}
    (found,) = (await plan_for([{"vector": "alpha", **WORK[name], **ended}], vectors_of(0), INFO)).layers[0]
    assert found.owner == 0
    plan = await plan_for([{"vector": "alpha", **WORK[name], **ended}], vectors_of(0), INFO)
    injector, row = Injector(Slots(1, D_MODEL, torch.device("cpu"))), row_of(plan, 1, 7)
    injector.admit(row)
    row.computed = 1
    injection, _, _ = begun(injector, [(row, 7)])
    assert torch.equal(injection.apply(0, residual), residual)


@pytest.mark.parametrize("name", list(OPERATIONS))
async def test_nothing_outside_the_span_changes(name: str) -> None:
    """What is across the directions stays, in length and kind: no operation touches other concepts."""
    residual, vectors = residuals(7), vectors_of(3)
    after = await applied(residual, WORK[name], vectors=vectors)
    count = 2 if "to" in OPERATIONS[name].required else 1
    basis = torch.linalg.qr(torch.stack([one.at(0).direction for one in vectors.values()][:count]).T)[0]
    across_before, across_after = (rows - rows @ basis @ basis.T for rows in (residual, after))
    cosine = torch.nn.functional.cosine_similarity(across_before, across_after)
    torch.testing.assert_close(cosine, torch.ones(7), rtol=0, atol=1e-4)
    if name != "rotate":
        torch.testing.assert_close(across_after, across_before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
async def test_the_order_of_interventions_does_not_matter(seed: int) -> None:
    """Not even the last bit: plans keep edits in an order of their own."""
    rng, residual = random.Random(seed), residuals(9, seed)
    items = [{**WORK[rng.choice(list(WORK))], "vector": rng.choice(["alpha", "beta"])} for _ in range(4)]
    items = [{**item, "strength": rng.choice([-0.5, 0.5, 1.0])} for item in items]
    one = await applied(residual, *items)
    assert torch.equal(one, await applied(residual, *rng.sample(items, len(items))))
    together = sum([await applied(residual, item) - residual for item in items], residual)
    if sum(item["operation"] == "ablate" for item in items) < 2:  # equal removals are of a span
        torch.testing.assert_close(one, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("degrees", [-180.0, -30.0, -1e-3, 0.0, 1e-3, 25.0, 90.0, 180.0])
async def test_rotate_keeps_the_norm_and_turns_by_the_angle(degrees: float) -> None:
    residual, vectors = residuals(5), vectors_of(1)
    after = await applied(residual, {"operation": "rotate", "degrees": degrees}, vectors=vectors)
    torch.testing.assert_close(after.norm(dim=1), residual.norm(dim=1), rtol=1e-5, atol=1e-5)
    cosine, direction = torch.nn.functional.cosine_similarity, vectors["alpha"].at(0).direction[None]
    before = torch.arccos(cosine(residual, direction).clamp(-1, 1))
    turned = torch.arccos(cosine(after, direction).clamp(-1, 1))
    expected = (before - math.radians(degrees)).clamp(0, math.pi)
    torch.testing.assert_close(turned, expected, rtol=1e-3, atol=5e-3)


async def test_rotate_leaves_what_is_parallel() -> None:
    vectors = vectors_of(2)
    residual = vectors["alpha"].at(0).direction[None] * 4.0
    assert torch.equal(await applied(residual, {"operation": "rotate", "degrees": 40.0}, vectors=vectors), residual)


@pytest.mark.parametrize("seed", range(5))
async def test_clamp_bounds_and_is_idempotent(seed: int) -> None:
    residual, vectors = residuals(6, seed), vectors_of(seed)
    item = {"operation": "clamp", "low": -1.0, "high": 0.5}
    once = await applied(residual, item, vectors=vectors)
    projection = once @ vectors["alpha"].at(0).direction
    assert bool(((projection >= -3.0 - 1e-4) & (projection <= 1.5 + 1e-4)).all())
    torch.testing.assert_close(await applied(once, item, vectors=vectors), once, rtol=1e-5, atol=1e-4)


def test_clamp_with_one_bound_is_a_floor_or_a_cap() -> None:
    entry = LayerDirection(torch.eye(D_MODEL)[0], scale=2.0)
    for bounds, sign, bias in (({"low": 1.0}, 1.0, 2.0), ({"high": 1.0}, -1.0, -2.0)):
        spec = InterventionSpec.model_validate({"vector": "alpha", "operation": "clamp", "strength": 0.5, **bounds})
        (edit,) = OPERATIONS["clamp"].edits(spec, entry, None)
        assert (edit.bias, edit.weight, edit.kind) == (bias, 0.5, "relu")
        assert torch.equal(edit.write, sign * entry.direction)


async def test_ablate_removes_a_joint_span_and_is_idempotent() -> None:
    residual, vectors = residuals(4), vectors_of(6)
    items = [{"operation": "ablate", "vector": name} for name in vectors]
    once = await applied(residual, *items, vectors=vectors)
    directions = torch.stack([one.at(0).direction for one in vectors.values()])
    torch.testing.assert_close(once @ directions.T, torch.zeros(4, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(await applied(once, *items, vectors=vectors), once, rtol=1e-5, atol=1e-5)


async def test_ablate_to_the_middle_sets_the_component_between_the_poles() -> None:
    residual, vectors = residuals(3), vectors_of(4, positive_mean=7.0, negative_mean=3.0)
    direction, item = vectors["alpha"].at(0).direction, {"operation": "ablate", "target": "middle"}
    after = await applied(residual, item, vectors=vectors)
    torch.testing.assert_close(after @ direction, torch.full((3,), 5.0))
    across = torch.eye(D_MODEL) - torch.outer(direction, direction)
    torch.testing.assert_close(after @ across, residual @ across, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidRequest, match="needs class means"):
        await applied(residual, item)


async def test_replace_carries_the_component_over() -> None:
    residual, vectors = residuals(3), vectors_of(8)
    source, target = (one.at(0).direction for one in vectors.values())
    after = await applied(residual, {"operation": "replace", "to": "beta", "unit": "raw"}, vectors=vectors)
    torch.testing.assert_close(after, residual + (residual @ source)[:, None] * (target - source))


@pytest.mark.parametrize("name", list(CONDITIONS))
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_conditions_score_each_row_alone_and_always_the_same(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randn(5, D_MODEL, generator=generator) * 4
    direction = torch.nn.functional.normalize(torch.randn(5, D_MODEL, generator=generator), dim=-1)
    entry = LayerDirection(direction[0], scale=2.0, weight=0.7, bias=0.1)
    values = [getattr(entry, parameter) for parameter in CONDITIONS[name].parameters]
    parameters = torch.tensor([values] * 5).reshape(5, len(values))
    scores = CONDITIONS[name].score(residual, direction, parameters)
    assert scores.shape == (5,)
    assert torch.equal(scores, CONDITIONS[name].score(residual, direction, parameters))
    for row in range(5):
        part = slice(row, row + 1)
        alone = CONDITIONS[name].score(residual[part], direction[part], parameters[part])
        torch.testing.assert_close(alone[0], scores[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(CONDITIONS))
def test_conditions_grow_with_the_component(name: str) -> None:
    """More of the concept never scores less: a threshold has one side that means more."""
    direction = torch.eye(D_MODEL)[:1].expand(9, D_MODEL)
    residual = torch.ones(9, D_MODEL)
    residual[:, 0] = torch.linspace(-4, 4, 9)
    entry = LayerDirection(direction[0], scale=2.0, weight=0.7, bias=0.1)
    values = [getattr(entry, parameter) for parameter in CONDITIONS[name].parameters]
    scores = CONDITIONS[name].score(residual, direction, torch.tensor([values] * 9).reshape(9, len(values)))
    assert bool((scores.diff() > 0).all())


def test_parameters_name_fields_of_a_layer() -> None:
    fields = {name for name in dir(LayerDirection) if not name.startswith("_")}
    for condition in CONDITIONS.values():
        assert set(condition.parameters) <= fields
    assert ConceptVector.__dataclass_fields__["layers"]
