"""The dose guard bounds what a request changes at every token, whatever changes it, and reports what was left."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.engine.options import EngineLimits
from steering.model.layout import find_layout
from steering.plan.types import DoseGuard
from steering.spec import SteeringSpec
from tests.engines import family_engine, run, run_all, run_alone, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for
from tests.reference import Reference

PROMPT = tuple(b"The answer to that question is not known")
BOUND = 0.05
ALWAYS = {"vector": "beta", "score": "cosine", "above": -1.5, "layer": 0, "at": "token"}
STRONG: list[list[dict[str, Any]]] = [
    [{"strength": 9.0}],
    [{"strength": 9.0, "layers": "all"}],
    [{"strength": 9.0, "scope": {"tokens": "generated", "start": 0}}],
    [{"strength": 9.0, "scope": {"tokens": "prompt", "start": 1}}],
    [{"strength": 9.0, "unit": "relative"}],
    [{"strength": 9.0, "when": ALWAYS}],
    [{"strength": 0.1, "schedule": {"kind": "linear", "to": 90.0, "tokens": 2}}],
    [{"operation": "ablate", "strength": 1e-9}, {"strength": 9.0}],
    [{"operation": "ablate", "strength": 5.0, "layers": "all"}],
    [{"operation": "clamp", "low": 50.0}],
    [{"operation": "rotate", "degrees": 170.0}],
    [{"operation": "replace", "to": "beta", "strength": 9.0}],
]


@pytest.mark.parametrize("family", ["llama", "bloom"])
async def test_nothing_passes_the_bound(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine(family, hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        cases = [[{"vector": "alpha", "layers": [1], **item} for item in items] for items in STRONG]
        for items in cases:
            guarded = await plan_for(items, vectors, engine.info, DoseGuard(BOUND, "clamp"))
            free = await plan_for(items, vectors, engine.info)
            one, other = [await run(engine, GenerationRequest(PROMPT, sampling(6), plan)) for plan in (guarded, free)]
            assert other.finish.steering.total > 1.2 * BOUND, items
            assert other.finish.steering.clamped == 0
            assert one.finish.steering.total <= BOUND * 1.0001, items
            assert one.finish.steering.clamped > 0
            for doses in one.finish.steering.doses[-1:]:
                assert sum(doses.values()) <= BOUND * 1.0001


@pytest.mark.parametrize("family", ["llama", "gpt2"])
async def test_it_agrees_with_the_slow_reference(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Random plans beyond the bound, computed in one pass or in pieces, and with their prompt taken from the cache."""
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    async with family_engine(family, hf_byte_tokenizer, EngineLimits(prefill_tokens=24)) as engine:
        vectors = vectors_for(engine.info, scale=20.0)
        cases = [random_items(seed, engine.info.layer_count) for seed in range(16)]
        plans = [await plan_for(items, vectors, engine.info, DoseGuard(0.3, "clamp")) for items in cases]
        requests = [GenerationRequest(PROMPT, sampling(8), plan) for plan in plans]
        outcomes = await run_all(engine, requests)
        again = await run_alone(engine, requests)
        assert any(outcome.finish.steering.clamped for outcome in outcomes)
        assert any(outcome.finish.cached_tokens for outcome in again)
    for items, outcome, other in zip(cases, outcomes, again, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        expected = Reference(model, blocks, spec, vectors, bound=0.3).generate(PROMPT, 8)
        assert outcome.tokens == other.tokens == expected, items
        assert other.finish.steering.total == pytest.approx(outcome.finish.steering.total, rel=1e-4, abs=1e-6)
        assert other.finish.steering.clamped == outcome.finish.steering.clamped


async def test_the_total_is_that_of_the_whole_change(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Two adds that nearly cancel have a dose each, and together nearly none."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        for behind in ([], [{"vector": "beta", "operation": "ablate", "layers": [1], "strength": 1e-6}]):
            items = [*behind, *({"vector": "alpha", "layers": [1], "strength": s} for s in (3.0, -2.9))]
            plan = await plan_for(items, vectors, engine.info)
            found = (await run(engine, GenerationRequest(PROMPT, sampling(6), plan))).finish.steering
            one, other = (doses[1] for doses in found.doses[-2:])
            assert found.total < 0.1 * one
            if not behind:  # static adds are all measured against the residual as it arrives
                assert found.total == pytest.approx(one - other, rel=1e-4)
