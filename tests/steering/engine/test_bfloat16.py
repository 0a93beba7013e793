"""In bfloat16 rounding differs with the shape of a pass: a row stays within a stated distance of itself alone and eager."""

import asyncio
from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.base import GenerationRequest
from steering.engine.compilation import CompileRequest
from steering.engine.transformers_engine import TransformersEngine
from steering.model.loading import load
from tests.engines import apart, run_all, run_alone, sampling, until_compiled
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for

TOLERANCE = 0.5
"""Nats, at every token before the first that differs: docs/api.md says so."""
TOKENS = 16
PROMPTS = [tuple(b"Once upon a time"), tuple(b"Hm"), tuple(b"A longer prompt than the others are")]


@pytest.fixture(scope="module")
def engines(
    tmp_path_factory: pytest.TempPathFactory, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[TransformersEngine, TransformersEngine]]:
    """(eager, compiled) in bfloat16."""
    folder, cache = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("cache")
    FAMILIES["llama"]().save_pretrained(folder)
    hf_byte_tokenizer.save_pretrained(folder)
    loaded = [load(str(folder), cache_dir=folder, device="cpu", dtype="bfloat16") for _ in range(2)]
    eager = TransformersEngine(loaded[0])
    compiled = TransformersEngine(loaded[1], compile_request=CompileRequest(str(folder), None, "bfloat16", cache))
    asyncio.run(until_compiled(compiled, cache))
    yield eager, compiled
    asyncio.run(eager.close())
    asyncio.run(compiled.close())


async def test_a_batch_stays_near_each_row_alone_and_eager(
    engines: tuple[TransformersEngine, TransformersEngine],
) -> None:
    eager, compiled = engines
    vectors = vectors_for(eager.info)
    requests = [
        GenerationRequest(
            PROMPTS[seed % 3],
            sampling(TOKENS, logprobs=0),
            await plan_for(random_items(seed + 500, eager.info.layer_count), vectors, eager.info),
        )
        for seed in range(32)
    ]
    together = await run_all(compiled, requests)
    for others in (await run_alone(compiled, requests), await run_all(eager, requests)):
        found = [nats for one, other in zip(together, others, strict=True) for nats in apart(one, other)]
        assert len(found) > TOKENS * len(requests) / 2
        assert max(found) <= TOLERANCE
