"""Condition scores and tokens acted on, as reported, equal those of the slow reference on different models."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.model.layout import find_layout
from steering.spec import SteeringSpec, Threshold
from tests.engines import family_engine, run_all, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.reference import Reference

PROMPT = tuple(b"The answer to that is a longer one")
COUNT = 6
CONDITIONS: list[dict[str, Any]] = [
    {"at": at, side: bound, "score": score}
    for at in ("prompt", "prompt_mean", "token")
    for side, bound in (("above", -0.1), ("below", 0.0))
    for score in ("projection", "cosine", "probe")
]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
async def test_scores_and_tokens_are_those_of_the_reference(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    async with family_engine(family, hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        cases = [
            [{"vector": "alpha", "strength": 0.4, "layers": [1], "when": {"vector": "gamma", "layer": 0, **condition}}]
            for condition in CONDITIONS
        ]
        plans = [await plan_for(items, vectors, engine.info) for items in cases]
        outcomes = await run_all(engine, [GenerationRequest(PROMPT, sampling(COUNT), plan) for plan in plans])
    fired = 0
    for items, outcome in zip(cases, outcomes, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        reference = Reference(model, blocks, spec, vectors)
        assert outcome.tokens == reference.generate(PROMPT, COUNT), items
        report = outcome.finish.steering
        threshold = spec.interventions[0].when
        assert isinstance(threshold, Threshold)
        assert report.condition_scores[0] == pytest.approx(reference.last_scores[threshold], rel=1e-3, abs=1e-4), items
        assert report.tokens == (len(reference.acted),), items
        fired += report.fired[0]
    assert 0 < fired < len(cases), "some conditions must hold and some must not"
