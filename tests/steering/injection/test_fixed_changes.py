"""Edits that do not depend on the residual are one addition a layer: the same residuals and reports as by `apply`, for prompts too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from steering.injection.injector import PASSES, Injection, Injector
from steering.injection.rows import SteeringReport
from steering.injection.slots import Slots
from steering.plan.types import UNSTEERED, DoseGuard, SteeringPlan
from steering.shapes import Residual
from tests.plans import plan_for, vectors_for
from tests.steering.injection.passes import INFO, begun, row_of

PROMPT, STEPS = 3, PASSES + 5
ADDS: list[list[dict[str, Any]]] = [
    [{"vector": "alpha", "layers": "all"}],
    [{"vector": "beta", "layers": [1], "strength": -0.4}, {"vector": "alpha", "layers": [0, 1], "unit": "raw"}],
    [{"vector": "gamma", "layers": [1], "scope": {"tokens": "generated"}}],
]
WHEN = {"vector": "beta", "above": 0.1, "layer": 0, "score": "projection", "at": "token"}
VARYING: list[list[dict[str, Any]]] = [
    [{"vector": "alpha", "layers": [1, 2], "when": WHEN}, {"vector": "gamma", "layers": [2], "strength": 0.3}],
    [{"vector": "beta", "layers": "all", "schedule": {"kind": "linear", "tokens": 10}}],
    [{"vector": "gamma", "layers": [1, 2], "scope": {"tokens": "prompt", "start": 1}}],
]


def by_apply(injection: Injection, layer: int, residual: Residual) -> Residual:
    """Steers as a pass did before."""
    return injection.apply(layer, residual.float()).to(residual.dtype)


def by_addition(injection: Injection, layer: int, residual: Residual) -> Residual:
    """Steers by one addition where nothing is read."""
    if layer not in injection.additive:
        return by_apply(injection, layer, residual)
    return torch.add(residual, injection.addition(layer, residual), out=torch.empty_like(residual))


def decoded(
    plans: list[SteeringPlan],
    steer: Callable[[int], Callable[[Injection, int, Residual], Residual]],
    dtype: torch.dtype,
) -> tuple[list[Residual], list[SteeringReport]]:
    """Runs a pass over prompts, then decode passes. steer: how a pass steers, from its number."""
    injector = Injector(Slots(INFO.layer_count, INFO.d_model, torch.device("cpu")))
    rows = [row_of(plan, PROMPT, STEPS) for plan in plans]
    for row in rows:
        injector.admit(row)
    left = []
    for step in range(STEPS):
        count = 1 if step else PROMPT
        injection, _, _ = begun(injector, [(row, count) for row in rows])
        for layer in injection.edited:
            arriving = torch.randn(
                len(rows) * count, INFO.d_model, generator=torch.Generator().manual_seed(step + 100 * layer)
            )
            left.append(steer(step)(injection, layer, (5.0 * arriving).to(dtype)))
        injection.finish()
        for row in rows:
            row.computed += count
    for row in rows:
        injector.release(row)
    return left, [row.doses.report() for row in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("items", [ADDS, [*ADDS, *VARYING]])
async def test_one_addition_does_what_apply_does(items: list[list[dict[str, Any]]], dtype: torch.dtype) -> None:
    vectors = vectors_for(INFO)
    plans = [*[await plan_for(some, vectors, INFO) for some in items], UNSTEERED]
    expected, reports = decoded(plans, lambda _: by_apply, dtype)
    for steer in (lambda _: by_addition, lambda step: by_addition if step % 3 else by_apply):
        found, own = decoded(plans, steer, dtype)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        for here, there in zip(own, reports, strict=True):
            assert (here.tokens, here.fired_at, here.clamped) == (there.tokens, there.fired_at, there.clamped)
            assert here.total == pytest.approx(there.total, rel=1e-5)
            assert [list(one.values()) for one in here.doses] == [
                pytest.approx(list(one.values()), rel=1e-5) for one in there.doses
            ]


@pytest.mark.parametrize(
    "item",
    [
        {"operation": "ablate"},
        {"unit": "relative", "strength": 0.1},
        {"operation": "rotate", "degrees": 10.0},
        {"when": {**WHEN, "layer": 1}},
        {"hold": {"score": 0.4}},
    ],
)
async def test_what_depends_on_the_token_is_left_to_apply(item: dict[str, Any]) -> None:
    plan = await plan_for([{"vector": "alpha", "layers": [1], **item}], vectors_for(INFO), INFO)
    injector = Injector(Slots(INFO.layer_count, INFO.d_model, torch.device("cpu")))
    row = row_of(plan, PROMPT, 4)
    injector.admit(row)
    row.computed = PROMPT
    injection, _, _ = begun(injector, [(row, 1)])
    assert 1 not in injection.additive


async def test_a_guarded_request_is_left_to_apply() -> None:
    injector = Injector(Slots(INFO.layer_count, INFO.d_model, torch.device("cpu")))
    row = row_of(await plan_for(ADDS[0], vectors_for(INFO), INFO, DoseGuard(bound=0.1, action="clamp")), PROMPT, 4)
    injector.admit(row)
    row.computed = PROMPT
    injection, _, _ = begun(injector, [(row, 1)])
    assert not injection.additive
