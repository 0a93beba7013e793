"""A strength that follows the score of a vector: the engine agrees with the slow reference, and planted residuals get what is asked."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.errors import InvalidRequest, VectorNotFound
from steering.injection.injector import Injector
from steering.injection.slots import Slots
from steering.model.layout import find_layout
from steering.operations import OPERATIONS
from steering.plan.types import DoseGuard
from steering.shapes import Residual
from steering.spec import InterventionSpec, SteeringSpec
from steering.vectors import ConceptVector, LayerDirection
from tests.engines import family_engine, run, run_all, run_alone, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.reference import Reference
from tests.steering.injection.passes import INFO, begun, row_of

PROMPT = tuple(b"The answer to that question is")
PROBED: dict[str, Any] = {"vector": "alpha", "layers": [1], "strength": 2.0, "strength_from": {"vector": "beta"}}
RELU = {"vector": "beta", "activation": "relu"}
CASES: list[list[dict[str, Any]]] = [
    [PROBED],
    [PROBED | {"strength": -3.0, "strength_from": {"vector": "beta", "bias": -0.2, "activation": "relu"}}],
    [PROBED | {"unit": "raw", "strength": 9.0, "layers": "all", "strength_from": RELU}],
    [PROBED | {"strength_from": {"vector": "alpha", "bias": 1.0, "activation": "linear"}}],
    [PROBED | {"scope": {"tokens": "generated", "start": 1, "end": 6}, "strength_from": RELU}],
    [PROBED | {"scope": {"tokens": "all", "token_ids": list(b"aei")}}],
    [PROBED | {"schedule": {"kind": "linear", "to": 2.0, "tokens": 4}}],
    [PROBED | {"when": {"vector": "gamma", "above": 0.0, "layer": 0, "at": "token"}}],
    [PROBED, PROBED | {"vector": "gamma", "strength_from": RELU}, {"vector": "beta", "operation": "ablate", "layers": [1]}],
    [PROBED | {"layers": "all", "share_dose": True}],
]  # fmt: skip
SCALE, MIDDLE = 4.0, 3.0
"""Of the planted probe."""


def planted() -> dict[str, ConceptVector]:
    """`change` is the first coordinate, `probe` the second with class means around 3; `bare` has layer 0 alone, `opposite`
    is the negative of `change`."""

    def vector(
        name: str, direction: torch.Tensor, layers: int = 3, *, high: float | None = None, low: float | None = None
    ) -> ConceptVector:
        entries = {
            layer: LayerDirection(direction, scale=SCALE, positive_mean=high, negative_mean=low)
            for layer in range(layers)
        }
        return ConceptVector(
            name=name, model=INFO.name, model_fingerprint=INFO.fingerprint, d_model=INFO.d_model, method="test",
            layers=entries, version=1,
        )  # fmt: skip

    first, second = torch.eye(INFO.d_model)[:2]
    return {
        "change": vector("change", first),
        "opposite": vector("opposite", -first),
        "probe": vector("probe", second, high=MIDDLE + 1.0, low=MIDDLE - 1.0),
        "bare": vector("bare", second, layers=1),
    }


def tokens_scoring(*scores: float) -> Residual:
    """One residual for each score of the planted probe."""
    residual = torch.randn(len(scores), INFO.d_model, generator=torch.Generator().manual_seed(1))
    residual[:, 1] = SCALE * torch.tensor(scores) + MIDDLE
    return residual


async def changed(residual: Residual, item: dict[str, Any], guard: DoseGuard | None = None) -> Residual:
    """What one intervention at layer 1 adds to a prompt of these residuals."""
    plan = await plan_for([{"vector": "change", "layers": [1], **item}], planted(), INFO, guard)
    injector, row = Injector(Slots(INFO.layer_count, INFO.d_model, torch.device("cpu"))), row_of(plan, len(residual), 0)
    injector.admit(row)
    injection, _, _ = begun(injector, [(row, len(residual))])
    after: Residual = injection.apply(1, residual.clone())
    return after - residual


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("bound", [None, 0.1])
async def test_it_agrees_with_the_slow_reference(
    family: str, bound: float | None, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """In a batch, and alone with the prompt taken from the cache."""
    model = FAMILIES[family]()
    guard, norms = None if bound is None else DoseGuard(bound, "clamp"), (9.0, 10.0, 12.0)
    async with family_engine(family, hf_byte_tokenizer) as engine:
        info = replace(engine.info, typical_norms=norms)
        vectors = vectors_for(info, means=True)
        plans = [await plan_for(items, vectors, info, guard) for items in CASES]
        requests = [GenerationRequest(PROMPT, sampling(8), plan) for plan in plans]
        outcomes, again = await run_all(engine, requests), await run_alone(engine, requests)
        plain = await run(engine, GenerationRequest(PROMPT, sampling(8)))
    assert any(outcome.tokens != plain.tokens for outcome in outcomes)
    limit = math.inf if bound is None else bound
    for items, outcome, other in zip(CASES, outcomes, again, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        reference = Reference(model, find_layout(model).blocks, spec, vectors, limit, norms=norms)
        assert outcome.tokens == other.tokens == reference.generate(PROMPT, 8), items
        for number, doses in enumerate(outcome.finish.steering.doses):
            theirs = {layer: sum(of) / len(of) for (index, layer), of in reference.doses.items() if index == number}
            assert doses == pytest.approx(theirs, rel=1e-2, abs=1e-4), items


async def test_relu_leaves_a_token_whose_score_is_not_above_zero_and_doubles_with_the_score() -> None:
    residual = tokens_scoring(-2.0, 0.0, 0.5, 1.0)
    change = await changed(residual, {"strength": 0.7, "strength_from": {"vector": "probe", "activation": "relu"}})
    assert change[0].abs().max() == 0.0
    assert change[1:].abs()[:, 1:].max() == 0.0
    assert change[1:, 0].tolist() == pytest.approx([0.0, 0.7 * SCALE * 0.5, 0.7 * SCALE * 1.0], abs=1e-5)


async def test_linear_changes_sign_with_the_score_and_the_bias_is_in_its_units() -> None:
    residual = tokens_scoring(-2.0, 0.0, 1.0)
    linear = await changed(residual, {"strength": 0.5, "strength_from": {"vector": "probe"}})
    assert linear[:, 0].tolist() == pytest.approx([-1.0 * SCALE, 0.0, 0.5 * SCALE], abs=1e-5)
    moved = await changed(residual, {"strength": 0.5, "strength_from": {"vector": "probe", "bias": 1.0}})
    assert (moved - linear)[:, 0].tolist() == pytest.approx([0.5 * SCALE] * 3, abs=1e-5)
    raw = await changed(residual, {"strength": 0.5, "unit": "raw", "strength_from": {"vector": "probe"}})
    assert raw[:, 0].tolist() == pytest.approx([-1.0, 0.0, 0.5], abs=1e-5)


async def test_it_is_not_carried_out_as_a_removal_where_it_reads_the_opposite_of_what_it_writes() -> None:
    """`change` read as `opposite`, in raw units and natural scales of 1, is the edit of an ablation. Two such add up."""
    vectors = planted()
    for name in ("change", "opposite"):
        vectors[name] = replace(vectors[name], layers={1: replace(vectors[name].layers[1], scale=1.0)})
    item = {"vector": "change", "unit": "raw", "layers": [1], "strength": 0.5, "strength_from": {"vector": "opposite"}}
    plan = await plan_for([item, item], vectors, INFO)
    assert [one.interventions for one in plan.layers[1]] == [(0,), (1,)]


@pytest.mark.parametrize("action", ["clamp", "refuse"])
async def test_the_dose_guard_bounds_what_no_plan_knows(action: Any) -> None:
    residual = tokens_scoring(0.01, 50.0, -50.0)
    item = {"strength": 1.0, "strength_from": {"vector": "probe"}}
    guarded, free = await changed(residual, item, DoseGuard(0.1, action)), await changed(residual, item)
    shares = guarded.norm(dim=1) / residual.norm(dim=1)
    assert shares.tolist() == pytest.approx([float(free[0].norm() / residual[0].norm()), 0.1, 0.1], rel=1e-4)
    plan = await plan_for([{"vector": "change", "layers": [1], **item}], planted(), INFO)
    assert plan.interventions[0].planned_dose == {}
    assert plan.vectors.keys() == {"change@1", "probe@1"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strength_from": {"vector": "nobody"}}, VectorNotFound, "no vector 'nobody'"),
        ({"strength_from": {"vector": "bare"}}, InvalidRequest, r"'bare' has no direction at layer 1; it has \[0\]"),
        ({"operation": "ablate"}, InvalidRequest, "operation 'ablate' takes no strength_from"),
        ({"unit": "relative"}, InvalidRequest, "'strength_from' takes unit 'scale' or 'raw', got 'relative'"),
        (
            {"hold": {"score": 0.4}},
            InvalidRequest,
            "'hold' sets the strength at each token and takes no 'strength_from'",
        ),
    ],
)
async def test_what_cannot_be_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    item = {"vector": "change", "layers": [1], "strength_from": {"vector": "probe"}}
    with pytest.raises(error, match=message):
        await plan_for([item | change], planted(), INFO)


@pytest.mark.parametrize(
    "change",
    [
        {"strength_from": {"vector": "probe", "bias": 1e300}},
        {"strength_from": None, "strength": -1e300},
        {"strength_from": None, "operation": "clamp", "strength": 1.0, "low": 1e300},
    ],
)
async def test_numbers_beyond_float32_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"change@1 at layer 1: its numbers must fit into float32"):
        await plan_for([{"vector": "change", "layers": [1]} | change], planted(), INFO)


async def test_a_probe_without_class_means_is_named() -> None:
    item = {"vector": "change", "layers": [0], "strength_from": {"vector": "bare"}}
    (warning,) = (await plan_for([item], planted(), INFO)).warnings
    assert warning.startswith("bare@1 has no class means: the score of 'strength_from' counts from the origin")
    centred = {"vector": "change", "layers": [0], "strength_from": {"vector": "probe"}}
    assert not (await plan_for([centred], planted(), INFO)).warnings


@pytest.mark.parametrize(("probe", "sign"), [({}, None), ({"activation": "relu"}, -1)])
def test_a_report_knows_the_direction_of_relu_alone(probe: dict[str, Any], sign: int | None) -> None:
    item = {"vector": "a", "strength": -0.5, "strength_from": {"vector": "b", **probe}}
    assert OPERATIONS["add"].sign(InterventionSpec.model_validate(item)) == sign
