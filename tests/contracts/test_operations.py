"""Every operation and condition of the tables keeps the same promises, with no test written for it alone."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.conditions import CONDITIONS
from steering.errors import InvalidRequest
from steering.operations import OPERATIONS
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector, LayerDirection
from tests.plans import WORK

D_MODEL = 24


def inputs(operation: str, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(residual, directions, parameters), each token with a strength of its own."""
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randn(tokens, D_MODEL, generator=generator) * 5
    count = 2 if "to" in OPERATIONS[operation].required else 1
    directions = torch.nn.functional.normalize(torch.randn(tokens, count, D_MODEL, generator=generator), dim=-1)
    rng = random.Random(seed)
    entries = [LayerDirection(directions[0, n], scale=3.0 + n) for n in range(count)]
    spec = InterventionSpec.model_validate({"vector": "alpha", **WORK[operation]})
    parameters = [
        OPERATIONS[operation].resolve(
            spec.model_copy(update={"strength": rng.uniform(-1, 1)}), entries[0], entries[-1] if count > 1 else None
        )
        for _ in range(tokens)
    ]
    return residual, directions, torch.tensor(parameters)


def parameters_of(operation: str, **fields: float) -> tuple[float, ...]:
    """Of a vector whose natural scale is 2."""
    spec = InterventionSpec.model_validate({"vector": "alpha", "operation": operation, **fields})
    return OPERATIONS[operation].resolve(spec, LayerDirection(torch.eye(D_MODEL)[0], scale=2.0), None)


def test_every_operation_is_in_the_test_plans() -> None:
    assert set(WORK) == set(OPERATIONS)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_shape_and_dtype_are_kept_and_the_input_is_not_changed(name: str) -> None:
    residual, directions, parameters = inputs(name, 7)
    before = residual.clone()
    after = OPERATIONS[name].apply(residual, directions, parameters)
    assert after.shape == residual.shape
    assert after.dtype == torch.float32
    assert torch.equal(residual, before)
    assert not torch.equal(after, before)
    assert len(OPERATIONS[name].parameters) == parameters.shape[1]


@pytest.mark.parametrize("name", list(OPERATIONS))
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_rows_are_independent(name: str, seed: int) -> None:
    residual, directions, parameters = inputs(name, 6, seed)
    together = OPERATIONS[name].apply(residual, directions, parameters)
    for row in range(6):
        alone = OPERATIONS[name].apply(residual[row : row + 1], directions[row : row + 1], parameters[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_weight_zero_is_the_identity(name: str) -> None:
    operation = OPERATIONS[name]
    residual, directions, parameters = inputs(name, 7)
    parameters[:, operation.parameters.index(operation.weighted)] = 0.0
    assert torch.equal(operation.apply(residual, directions, parameters), residual)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_nothing_outside_the_span_changes(name: str) -> None:
    """What is across the directions stays, in length and kind: no operation touches other concepts."""
    residual, directions, parameters = inputs(name, 7)
    after = OPERATIONS[name].apply(residual, directions, parameters)
    for row in range(7):
        basis = torch.linalg.qr(directions[row].T)[0]
        across_before = residual[row] - basis @ (basis.T @ residual[row])
        across_after = after[row] - basis @ (basis.T @ after[row])
        cosine = torch.nn.functional.cosine_similarity(across_before, across_after, dim=0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-4)
        if name != "rotate":
            torch.testing.assert_close(across_after, across_before, rtol=1e-4, atol=1e-4)


@given(degrees=st.floats(-180, 180), seed=st.integers(0, 10_000))
def test_rotate_keeps_the_norm_and_turns_by_the_angle(degrees: float, seed: int) -> None:
    residual, directions, _ = inputs("rotate", 5, seed)
    angle = parameters_of("rotate", degrees=degrees)[0]
    after = OPERATIONS["rotate"].apply(residual, directions, torch.full((5, 1), angle))
    torch.testing.assert_close(after.norm(dim=1), residual.norm(dim=1), rtol=1e-5, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity
    before = torch.arccos(cosine(residual, directions[:, 0]).clamp(-1, 1))
    turned = torch.arccos(cosine(after, directions[:, 0]).clamp(-1, 1))
    expected = (before - angle).clamp(0, math.pi)
    torch.testing.assert_close(turned, expected, rtol=1e-3, atol=5e-3)


def test_rotate_leaves_what_is_parallel() -> None:
    direction = torch.nn.functional.normalize(torch.ones(1, 1, D_MODEL), dim=-1)
    residual = direction[:, 0] * 4.0
    assert torch.equal(OPERATIONS["rotate"].apply(residual, direction, torch.tensor([[1.0]])), residual)


@given(seed=st.integers(0, 10_000))
def test_clamp_bounds_and_is_idempotent(seed: int) -> None:
    residual, directions, _ = inputs("clamp", 6, seed)
    parameters = torch.tensor([parameters_of("clamp", low=-1.0, high=0.5)] * 6)
    once = OPERATIONS["clamp"].apply(residual, directions, parameters)
    projection = (once * directions[:, 0]).sum(1)
    assert bool(((projection >= -2.0 - 1e-4) & (projection <= 1.0 + 1e-4)).all())
    torch.testing.assert_close(OPERATIONS["clamp"].apply(once, directions, parameters), once, rtol=1e-5, atol=1e-4)


def test_clamp_with_one_bound_is_a_floor_or_a_cap() -> None:
    assert parameters_of("clamp", low=1.0) == (2.0, math.inf, 1.0)
    assert parameters_of("clamp", strength=0.5, high=1.0) == (-math.inf, 2.0, 0.5)


def test_ablate_removes_a_joint_span_and_is_idempotent() -> None:
    residual = torch.randn(4, D_MODEL, generator=torch.Generator().manual_seed(1))
    basis = torch.linalg.qr(torch.randn(D_MODEL, 3, generator=torch.Generator().manual_seed(2)))[0].T
    directions, parameters = basis.expand(4, 3, D_MODEL), torch.tensor([[1.0, 0.0]]).expand(4, 2)
    once = OPERATIONS["ablate"].apply(residual, directions, parameters)
    torch.testing.assert_close(once @ basis.T, torch.zeros(4, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(OPERATIONS["ablate"].apply(once, directions, parameters), once, rtol=1e-5, atol=1e-5)


def test_ablate_to_the_middle_sets_the_component_between_the_poles() -> None:
    direction = torch.eye(D_MODEL)[0]
    entry = LayerDirection(direction, scale=4.0, positive_mean=7.0, negative_mean=3.0)
    parameters = OPERATIONS["ablate"].resolve(
        InterventionSpec(vector="alpha", operation="ablate", target="middle"), entry, None
    )
    residual = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(4))
    after = OPERATIONS["ablate"].apply(
        residual, direction.expand(3, 1, D_MODEL), torch.tensor([parameters]).expand(3, 2)
    )
    torch.testing.assert_close(after[:, 0], torch.full((3,), 5.0))
    torch.testing.assert_close(after[:, 1:], residual[:, 1:])
    with pytest.raises(InvalidRequest, match="needs class means"):
        OPERATIONS["ablate"].resolve(
            InterventionSpec(vector="alpha", operation="ablate", target="middle"),
            LayerDirection(direction, scale=4.0),
            None,
        )


def test_replace_carries_the_component_over() -> None:
    one, two = torch.eye(D_MODEL)[:2]
    residual = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(3))
    directions = torch.stack([one, two]).expand(3, 2, D_MODEL)
    after = OPERATIONS["replace"].apply(residual, directions, torch.tensor([[1.0, 1.5]] * 3))
    torch.testing.assert_close(after[:, 0], torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 1], residual[:, 1] + 1.5 * residual[:, 0])
    torch.testing.assert_close(after[:, 2:], residual[:, 2:])


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
