"""Layers that share a dose: the engine agrees with the slow reference, and the sum is that of the recommended layers."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.cards import Recommended
from steering.engine.api import GenerationRequest
from steering.engine.norms import measure_typical_norms
from steering.errors import DoseExceeded, InvalidRequest
from steering.model.info import ModelInfo
from steering.model.layout import find_layout
from steering.plan.types import DoseGuard
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from tests.engines import family_engine, run, run_all, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.reference import Reference

INFO = ModelInfo("tiny", "Llama", "f" * 64, 16, 3, 100, 256, "float32", "cpu", 1000, True, (10.0, 20.0, 40.0))
PROMPT = tuple(b"The answer to that question is")
SHARED: dict[str, Any] = {"vector": "alpha", "strength": 0.8, "layers": "all", "share_dose": True}
CASES: list[list[dict[str, Any]]] = [
    [SHARED],
    [SHARED | {"layers": [0, 2], "strength": -0.8}],
    [SHARED | {"unit": "raw", "strength": 3.0}],
    [SHARED | {"unit": "relative", "strength": 0.2}],
    [SHARED | {"scope": {"tokens": "generated", "start": 1, "end": 6}}],
    [SHARED | {"schedule": {"kind": "linear", "to": 2.0, "tokens": 4}}],
    [SHARED | {"when": {"vector": "beta", "above": 0.0, "layer": 0, "at": "token"}}],
    [SHARED, {"vector": "beta", "operation": "ablate", "layers": [1]}, SHARED | {"vector": "gamma", "layers": [1, 2]}],
]


def scaled(info: ModelInfo) -> dict[str, ConceptVector]:
    """Vectors with another natural scale at each layer; gamma recommends two layers."""
    vectors = {
        name: replace(
            vector, layers={at: replace(entry, scale=entry.scale * (1 + at)) for at, entry in vector.layers.items()}
        )
        for name, vector in vectors_for(info, means=True).items()
    }
    return vectors | {"gamma": replace(vectors["gamma"], recommended=Recommended((0, 2)))}


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("bound", [None, 0.1])
async def test_it_agrees_with_the_slow_reference(
    family: str, bound: float | None, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES[family]()
    guard = None if bound is None else DoseGuard(bound, "clamp")
    async with family_engine(family, hf_byte_tokenizer) as engine:
        norms = await measure_typical_norms(engine, ("some text", "and another one"))
        info = replace(engine.info, typical_norms=norms)
        vectors = scaled(info)
        plans = [await plan_for(items, vectors, info, guard) for items in CASES]
        outcomes = await run_all(engine, [GenerationRequest(PROMPT, sampling(8), plan) for plan in plans])
        plain = await run(engine, GenerationRequest(PROMPT, sampling(8)))
    assert any(outcome.tokens != plain.tokens for outcome in outcomes)
    for items, outcome in zip(CASES, outcomes, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        limit = math.inf if bound is None else bound
        reference = Reference(model, find_layout(model).blocks, spec, vectors, limit, norms=norms)
        assert outcome.tokens == reference.generate(PROMPT, 8), items


@pytest.mark.parametrize("unit", ["scale", "raw", "relative"])
async def test_every_layer_plans_the_same_part_of_what_the_recommended_layers_plan(unit: str) -> None:
    vectors = scaled(INFO)
    for name in ("alpha", "gamma"):
        item = SHARED | {"vector": name, "unit": unit, "strength": -0.3}
        plan = await plan_for([item], vectors, INFO)
        shared = plan.interventions[0]
        own = (await plan_for([item | {"layers": "recommended", "share_dose": False}], vectors, INFO)).interventions[0]
        total = sum(own.planned_dose.values())
        assert shared.planned_dose == pytest.approx(dict.fromkeys((0, 1, 2), total / 3))
        written = [
            item | {"layers": [at], "strength": value, "share_dose": None} for at, value in shared.strengths.items()
        ]
        by_layer = await plan_for(written, vectors, INFO)
        for at in range(3):
            assert torch.equal(by_layer.layers[at][0].numbers, plan.layers[at][0].numbers)
        assert own.strengths == {}


async def test_one_recommended_layer_gets_the_strength_as_written() -> None:
    one = (await plan_for([SHARED | {"layers": "recommended"}], scaled(INFO), INFO)).interventions[0]
    assert one.strengths == pytest.approx({1: 0.8})


async def test_the_dose_guard_sums_what_the_layers_share() -> None:
    """alpha at layer 1: natural scale 6 in a residual of 20."""
    item = SHARED | {"strength": 1.0}
    with pytest.raises(DoseExceeded, match=r"3 layers from 0 to 2 together is 0\.30"):
        await plan_for([item], scaled(INFO), INFO, DoseGuard(0.29, "refuse"))
    assert not (await plan_for([item], scaled(INFO), INFO, DoseGuard(0.31, "refuse"))).warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operation": "ablate"}, "operation 'ablate' takes no share_dose"),
        ({"hold": {"score": 0.4}}, "'hold' sets the strength of each layer and takes no 'share_dose'"),
    ],
)
async def test_what_has_no_dose_to_share_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await plan_for([SHARED | change], vectors_for(INFO), INFO)


async def test_without_typical_norms_only_relative_units_can_be_shared() -> None:
    unmeasured = replace(INFO, typical_norms=())
    with pytest.raises(InvalidRequest, match="were not measured; use unit 'relative'"):
        await plan_for([SHARED], vectors_for(INFO), unmeasured)
    plan = await plan_for([SHARED | {"unit": "relative"}], vectors_for(INFO), unmeasured)
    assert [float(plan.layers[at][0].numbers[0, 1]) for at in range(3)] == pytest.approx([0.8 / 3] * 3)
