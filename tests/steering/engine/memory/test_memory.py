"""Cache memory: what was needed once is given back, what cannot be had ends requests and not the engine, and no slot hands
on numbers that are not finite."""

import asyncio
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.engine.options import EngineLimits
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.memory.slot_cache import BLOCK
from steering.errors import NonfiniteActivations, OutOfMemory
from steering.plan.types import SteeringPlan
from tests.engines import family_engine, run, run_all, sampling
from tests.plans import plan_for, vectors_for
from tests.polling import until

PROMPT = tuple(b"Once upon a time")
LONG = tuple(b"A prompt that is longer than a block of the cache, because it goes on and on, as such prompts do, "
             b"until nobody remembers how it began, or why, or who was asked in the first place.")  # fmt: skip


def held(engine: TransformersEngine) -> int:
    """Bytes of keys and values."""
    layers = engine._runner.cache.layers
    return sum(states.nbytes for layer in layers for states in (layer.keys, layer.values))


async def wild_plan(engine: TransformersEngine) -> SteeringPlan:
    """Overflows in every layer behind the first."""
    items = [{"vector": "alpha", "strength": 3.3e38, "unit": "raw", "layers": [0, 1]}] * 2
    return await plan_for(items, vectors_for(engine.info), engine.info)


async def test_many_short_ones_and_then_a_long_one_stay_within_the_limit(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    position = 2 * 2 * 8 * 4 * 3  # keys and values, heads, width, bytes, layers
    limit = 8 * BLOCK * position
    async with family_engine("llama", hf_byte_tokenizer, EngineLimits(cache_bytes=limit)) as engine:
        crowd = [GenerationRequest(PROMPT, sampling(8)) for _ in range(8)]
        alone = await run(engine, GenerationRequest(LONG, sampling(30)))
        await run_all(engine, crowd)
        assert held(engine) <= limit
        again, *rest = await run_all(engine, [GenerationRequest(LONG, sampling(30)), *crowd])
        assert held(engine) <= limit
    assert again.tokens == alone.tokens
    assert len({tuple(one.tokens) for one in rest}) == 1


async def test_memory_that_cannot_be_had_ends_requests_and_not_the_engine(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        expected = await run(engine, GenerationRequest(PROMPT, sampling(12)))
        cache: Any = engine._runner.cache
        real, failures = cache._resized, iter([True])

        def resized(old: torch.Tensor) -> torch.Tensor:
            if next(failures, False):
                raise MemoryError
            return real(old)

        cache._resized = resized
        with pytest.raises(OutOfMemory):
            await asyncio.wait_for(run(engine, GenerationRequest(LONG, sampling(12))), 20)
        assert engine.stats().running == 0
        long = await run(engine, GenerationRequest(LONG, sampling(12)))
        assert len(long.tokens) == 12
        assert (await run(engine, GenerationRequest(PROMPT, sampling(12)))).tokens == expected.tokens


async def test_a_capture_that_overflowed_leaves_its_slot_clean(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        request = GenerationRequest(PROMPT, sampling(12))
        expected = await run(engine, request)
        wild = CapturePrompt(LONG, plan=await wild_plan(engine))
        for _ in range(4):
            with pytest.raises(NonfiniteActivations):
                await engine.capture([wild] * 4, CaptureSpec((2,), "last"))
        assert [one.tokens for one in await run_all(engine, [request] * 4)] == [expected.tokens] * 4


async def test_a_prompt_that_is_left_half_computed_leaves_its_slot_clean(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    limits = EngineLimits(idle_prefill_tokens=16, prefill_tokens=16)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        request = GenerationRequest(PROMPT, sampling(12))
        expected = await run(engine, request)
        plan = await wild_plan(engine)
        steps = engine.stats().steps
        reading = asyncio.create_task(run(engine, GenerationRequest(LONG, sampling(12), plan)))
        await until(lambda: engine.stats().steps >= steps + 2)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert (await run(engine, request)).tokens == expected.tokens
