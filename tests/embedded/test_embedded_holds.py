"""Closed-loop control on the embedded model: the mean readout of an answer stays at the set point."""

from statistics import fmean

import pytest

from steering.concepts.loader import load_evaluation_prompts
from steering.engine.api import GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.workflows.extract import ExtractionRequest, extract
from steering.workflows.texts import as_prompts
from tests.embedded.material import few_pairs
from tests.engines import run_all, sampling
from tests.plans import plan_for

pytestmark = pytest.mark.embedded

LAYER, PROMPTS = 18, 4


async def test_the_mean_readout_stays_at_the_set_point(engine: TransformersEngine) -> None:
    """On average over the prompts within 0.15; benchmarks/quality/holding.py measures it over twenty."""
    request = ExtractionRequest("sentiment", few_pairs("sentiment", 16), position="mean", layers=(LAYER,), holdout=0.0)
    vector = await extract(engine, request)
    prompts = as_prompts(engine, load_evaluation_prompts("sentiment")[:PROMPTS])
    deviations = []
    for score in (-0.4, 0.4):
        items = [{"vector": "sentiment", "strength": 3.0, "layers": [LAYER], "hold": {"score": score}}]
        plan = await plan_for(items, {"sentiment": vector}, engine.info)
        outcomes = await run_all(engine, [GenerationRequest(prompt, sampling(48), plan) for prompt in prompts])
        found = [outcome.finish.steering.held[0][LAYER] for outcome in outcomes]
        assert all(abs(one.last_strength) <= 3.0 for one in found)
        assert len({one.strength for one in found}) == PROMPTS, "every prompt needs a strength of its own"
        deviations += [abs(one.score - score) for one in found]
    assert fmean(deviations) <= 0.15
