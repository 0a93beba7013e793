"""Cache memory is bounded, what cannot be had ends requests and not the engine, and no block hands on numbers that are not
finite."""

import asyncio
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.runner import run_worst_pass
from steering.errors import NonfiniteActivations, OutOfMemory
from steering.plan.types import SteeringPlan
from tests.engines import family_engine, run, run_all, run_at_once, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.polling import until

PROMPT = tuple(b"Once upon a time")
LONG = tuple(b"A prompt that is longer than a block of the cache, because it goes on and on, as such prompts do, "
             b"until nobody remembers how it began, or why, or who was asked in the first place.")  # fmt: skip
POSITION = 2 * 2 * 8 * 4 * 3
"""Bytes: keys and values, heads, width, float32, layers."""


async def wild_plan(engine: TransformersEngine) -> SteeringPlan:
    """Overflows in every layer behind the first."""
    items = [{"vector": "alpha", "strength": 3.3e38, "unit": "raw", "layers": [0, 1]}] * 2
    return await plan_for(items, vectors_for(engine.info), engine.info)


async def test_the_cache_takes_what_it_was_given_and_all_fits_in_turns(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    limits = EngineLimits(cache_bytes=16 * BLOCK * POSITION)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        assert engine.stats().blocks_total == 16
        held = sum(states.nbytes for states in (*engine._runner.cache.keys, *engine._runner.cache.values))
        assert held == 17 * BLOCK * POSITION
        crowd = [GenerationRequest(PROMPT, sampling(8)) for _ in range(24)]
        alone = await run(engine, GenerationRequest(LONG, sampling(30)))
        await run_all(engine, crowd)
        again, *rest = await run_all(engine, [GenerationRequest(LONG, sampling(30)), *crowd])
        assert engine.stats().blocks_used == 0
        assert engine.stats().blocks_cached > 0
    assert again.tokens == alone.tokens
    assert len({tuple(one.tokens) for one in rest}) == 1


async def test_what_never_fits_is_refused_at_once(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer, EngineLimits(cache_bytes=6 * BLOCK * POSITION)) as engine:
        with pytest.raises(OutOfMemory, match="cache"):
            await run(engine, GenerationRequest(LONG, sampling(2)))
        with pytest.raises(OutOfMemory, match="a text of 179 tokens"):
            await engine.capture([CapturePrompt(LONG)], CaptureSpec((1,)))
        assert len((await run(engine, GenerationRequest(PROMPT, sampling(80)))).tokens) == 80


async def test_a_preempted_answer_goes_on_as_if_nothing_had_happened(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Four answers of 100 tokens where two fit: tokens, text, doses and the number of events are those of each alone."""
    limits = EngineLimits(cache_bytes=16 * BLOCK * POSITION)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        vectors = vectors_for(engine.info)
        items: list[dict[str, Any]] = [
            {"vector": "alpha", "layers": "all", "strength": 0.5},
            {"vector": "beta", "layers": [1], "operation": "ablate"},
        ]
        plan = await plan_for(items, vectors, engine.info)
        requests = [
            GenerationRequest((*PROMPT, n), sampling(100, temperature=0.9, seed=n, logprobs=1), plan) for n in range(4)
        ]
        alone = [await run(engine, request) for request in requests]
        assert engine.stats().preemptions == 0
        together = await run_at_once(engine, requests)
        assert engine.stats().preemptions > 0
        assert engine.stats().blocks_used == 0
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        assert one.text == other.text
        assert [event.index for event in one.events] == list(range(101))
        for dose, expected in zip(one.finish.steering.doses, other.finish.steering.doses, strict=True):
            assert dose == pytest.approx(expected, rel=1e-3)


async def test_a_capture_that_overflowed_leaves_its_blocks_clean(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    limits = EngineLimits(cache_bytes=48 * BLOCK * POSITION)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        request = GenerationRequest(PROMPT, sampling(12))
        expected = await run(engine, request)
        wild = CapturePrompt(LONG, plan=await wild_plan(engine))
        for _ in range(4):
            with pytest.raises(NonfiniteActivations):
                await engine.capture([wild] * 4, CaptureSpec((2,), "last"))
        # what is read is finite here, and what lies behind it is not
        await engine.capture([wild] * 4, CaptureSpec((0,), "last", embeddings=True), priority=0)
        assert [one.tokens for one in await run_all(engine, [request] * 4)] == [expected.tokens] * 4


async def test_a_prompt_that_is_left_half_computed_leaves_its_blocks_clean(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    limits = EngineLimits(idle_prefill_tokens=16, prefill_tokens=16, cache_bytes=16 * BLOCK * POSITION)
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


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_the_worst_pass_is_within_the_context(family: str) -> None:
    """Engine A4, N13: what the cache of a CUDA device is measured by. Learned positions end with the context, which is shorter here than a pass may
    be; on a GPU that is an assertion of the device, after which the process is of no use."""
    limits, model, lengths = EngineLimits(), FAMILIES[family](), list[int]()
    model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: lengths.append(ids[0].shape[1]))
    run_worst_pass(model, torch.device("cpu"), limits)
    run_worst_pass(model, torch.device("cpu"), EngineLimits(idle_prefill_tokens=100))
    assert limits.idle_prefill_tokens > 256
    assert lengths == [256, 100]
