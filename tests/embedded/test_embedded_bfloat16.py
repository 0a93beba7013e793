"""The guarantees of docs/api.md for bfloat16, on the embedded model: the batch against each row alone."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from steering.engine.api import GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import load
from steering.vectors import ConceptVector
from tests.embedded.material import question
from tests.embedded.rows import PLAIN, STEERED
from tests.engines import logprob_differences, run_all, run_alone, sampling
from tests.plans import plan_for

pytestmark = pytest.mark.embedded
TOLERANCE = 0.5
TOKENS = 8


@pytest.fixture(scope="module")
def half(model_cache: Path) -> Iterator[TransformersEngine]:
    """The embedded model as it is served."""
    engine = TransformersEngine(load(None, cache_dir=model_cache, device="cpu", dtype="bfloat16"))
    yield engine
    asyncio.run(engine.close())


async def test_a_batch_stays_near_each_row_alone(
    half: TransformersEngine, vectors: Mapping[str, ConceptVector]
) -> None:
    requests = [
        GenerationRequest(
            question(row.prompt), sampling(TOKENS, logprobs=0), await plan_for(row.items, vectors, half.info)
        )
        for row in (*STEERED, *PLAIN)
    ]
    together, alone = await run_all(half, requests), await run_alone(half, requests)
    found = [nats for one, other in zip(together, alone, strict=True) for nats in logprob_differences(one, other)]
    assert len(found) > TOKENS * len(requests) / 2
    assert max(found) <= TOLERANCE
