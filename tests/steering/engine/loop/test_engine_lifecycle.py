"""Requests that leave, fail or overflow: nothing is left behind, nobody else notices, the engine serves on."""

import asyncio
import random
import time

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest, SamplingParams
from steering.engine.options import EngineLimits
from steering.engine.transformers.engine import TransformersEngine
from steering.errors import (
    ContextLengthExceeded,
    EngineDead,
    InternalError,
    InvalidRequest,
    NonfiniteActivations,
    OutOfMemory,
    Overloaded,
)
from tests.engines import Outcome, engine_over, family_engine, run, run_all, sampling
from tests.families import FAMILIES, LLAMA_LIKE, build
from tests.plans import plan_for, random_items, vectors_for
from tests.polling import until

PROMPT = tuple(b"Tell me something")


async def quiet(engine: TransformersEngine) -> None:
    """Waits until nothing runs or waits; the engine's thread sends no event for that, so it is asked."""
    await until(lambda: engine.stats().running == engine.stats().waiting == 0, 120)


def slowed(seconds: float, model: PreTrainedModel) -> PreTrainedModel:
    """Every pass takes at least so long, so that no answer ends before the test comes to leave it."""
    model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    return model


def hooks_on(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


async def test_two_hundred_requests_dropped_at_random_moments(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = slowed(0.01, FAMILIES["llama"]())
    async with engine_over(model, hf_byte_tokenizer, EngineLimits(max_running=16)) as engine:
        vectors = vectors_for(engine.info)
        expected = await run(engine, GenerationRequest(PROMPT, sampling(12)))
        hooks, tasks = hooks_on(model), len(asyncio.all_tasks())
        rng = random.Random(0)
        vanished: list[int] = []

        async def leave(seed: int) -> None:
            plan = await plan_for(random_items(seed, engine.info.layer_count), vectors, engine.info)
            stream = engine.generate(GenerationRequest(PROMPT, sampling(50), plan))
            for _ in range(rng.randint(0, 6)):
                await anext(stream)
            await stream.aclose()

        async def vanish(seed: int) -> None:
            task = asyncio.create_task(run(engine, GenerationRequest(PROMPT, sampling(50))))
            await asyncio.sleep(rng.random() * 0.05)
            if task.cancel():  # where this loop was held up for long, some are answered by now
                vanished.append(seed)
                with pytest.raises(asyncio.CancelledError):
                    await task

        await asyncio.gather(*(leave(seed) if seed % 2 else vanish(seed) for seed in range(200)))
        assert len(vanished) > 20
        await quiet(engine)
        again = await run(engine, GenerationRequest(PROMPT, sampling(12)))
        assert again.tokens == expected.tokens
        assert hooks_on(model) == hooks
        assert len(asyncio.all_tasks()) == tasks
    assert hooks_on(model) == 0


async def test_cancelling_a_waiting_request_leaves_the_running_one_alone(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with family_engine("llama", hf_byte_tokenizer, EngineLimits(max_running=1)) as engine:
        alone = await run(engine, GenerationRequest(PROMPT, sampling(40)))
        running = asyncio.create_task(run(engine, GenerationRequest(PROMPT, sampling(40))))
        waiting = asyncio.create_task(run(engine, GenerationRequest(PROMPT, sampling(40))))
        await asyncio.sleep(0.02)
        waiting.cancel()
        assert (await running).tokens == alone.tokens


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError("out of memory")])
async def test_a_failing_pass_ends_its_rows_alone(hf_byte_tokenizer: PreTrainedTokenizerFast, error: Exception) -> None:
    model = FAMILIES["llama"]()
    async with engine_over(model, hf_byte_tokenizer) as engine:
        expected = await run(engine, GenerationRequest(PROMPT, sampling(12)))
        hooks = hooks_on(model)
        for _ in range(20):
            calls = 0

            def fail(*_: object) -> None:
                nonlocal calls
                calls += 1
                if calls >= 5:  # a pass that does not fit is tried once more
                    raise error

            handle = model.register_forward_pre_hook(fail)
            with pytest.raises(OutOfMemory if isinstance(error, MemoryError) else InternalError):
                await run(engine, GenerationRequest(PROMPT, sampling(12)))
            handle.remove()
        assert hooks_on(model) == hooks
        assert engine.stats().running == 0
        assert (await run(engine, GenerationRequest(PROMPT, sampling(12)))).tokens == expected.tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
async def test_numbers_out_of_range_end_one_row(hf_byte_tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> None:
    model = build("LlamaForCausalLM", **LLAMA_LIKE).to(dtype)
    async with engine_over(model, hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        wild = await plan_for(
            [{"vector": "alpha", "strength": 3.3e38, "unit": "raw", "layers": [0, 1, 2]}] * 2, vectors, engine.info
        )
        # a plan whose best token is never nearly tied, since a batch of another size may round otherwise in half precision
        mild = await plan_for([{"vector": "delta", "strength": 1.5, "layers": [1]}], vectors, engine.info)
        good = [GenerationRequest(PROMPT, sampling(12), plan) for plan in (mild, mild)]
        expected = await run_all(engine, good)
        results = await asyncio.gather(
            run(engine, good[0]),
            run(engine, GenerationRequest(PROMPT, sampling(12), wild)),
            run(engine, good[1]),
            return_exceptions=True,
        )
        assert isinstance(results[0], Outcome)
        assert isinstance(results[1], NonfiniteActivations)
        assert isinstance(results[2], Outcome)
        assert [results[0].tokens, results[2].tokens] == [outcome.tokens for outcome in expected]
        # the slot that overflowed is clean for whoever comes next
        assert [o.tokens for o in await run_all(engine, good * 2)] == [o.tokens for o in expected * 2]


async def test_a_model_that_overflows_by_itself_is_not_said_to_be_steered(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = build("LlamaForCausalLM", **LLAMA_LIKE)
    model.lm_head.weight.data.fill_(3e38)
    async with engine_over(model, hf_byte_tokenizer) as engine:
        with pytest.raises(NonfiniteActivations, match="nothing steers"):
            await run(engine, GenerationRequest(PROMPT, sampling(4)))


async def test_limits_are_checked_before_device_work(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    limits = EngineLimits(max_running=1, max_waiting=2, cache_bytes=12 * 16 * 384)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        with pytest.raises(ContextLengthExceeded, match="256"):
            await run(engine, GenerationRequest(PROMPT, sampling(250)))
        with pytest.raises(InvalidRequest, match="max_tokens"):
            await run(engine, GenerationRequest(PROMPT, SamplingParams(max_tokens=0)))
        with pytest.raises(OutOfMemory, match="cache"):
            await run(engine, GenerationRequest(PROMPT, sampling(200)))
        results = await asyncio.gather(
            *(run(engine, GenerationRequest(PROMPT, sampling(30))) for _ in range(12)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, BaseException)]
        assert refused
        assert all(isinstance(result, Overloaded) for result in refused)
        assert len(refused) < 12
        assert engine.stats().steps > 0


async def test_closing_ends_streams_and_refuses_new_ones(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with engine_over(slowed(0.05, FAMILIES["llama"]()), hf_byte_tokenizer) as engine:
        stream = engine.generate(GenerationRequest(PROMPT, sampling(200)))
        await anext(stream)
        await engine.close()
        with pytest.raises(EngineDead):
            async for _ in stream:
                pass
        with pytest.raises(EngineDead):
            await run(engine, GenerationRequest(PROMPT, sampling(2)))
        assert not engine.stats().alive
        await engine.close()


async def test_captures_share_the_engine_and_can_be_cancelled(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Four texts a pass, so that the capture is far from its end when it is cancelled."""
    async with family_engine("llama", hf_byte_tokenizer, EngineLimits(max_background=4)) as engine:
        expected = await run(engine, GenerationRequest(PROMPT, sampling(30)))
        prompts = [CapturePrompt(f"text number {n}") for n in range(2000)]
        begun = asyncio.Event()
        capture = asyncio.create_task(
            engine.capture(prompts, CaptureSpec((0, 1, 2)), progress=lambda done, total: begun.set())
        )
        live = asyncio.create_task(run(engine, GenerationRequest(PROMPT, sampling(30))))
        await begun.wait()
        capture.cancel()
        with pytest.raises(asyncio.CancelledError):
            await capture
        assert (await live).tokens == expected.tokens
        await quiet(engine)
        assert (await run(engine, GenerationRequest(PROMPT, sampling(30)))).tokens == expected.tokens


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
async def test_a_model_generates_by_itself_again_when_its_engine_has_closed(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES[family]()
    ids = torch.tensor([PROMPT])
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    before, attention = model.generate(ids, **settings), model.config._attn_implementation
    for _ in range(2):
        async with engine_over(model, hf_byte_tokenizer) as engine:
            assert (await run(engine, GenerationRequest(PROMPT, sampling(8)))).tokens == before[
                0, len(PROMPT) :
            ].tolist()
        assert model.config._attn_implementation == attention
        assert torch.equal(model.generate(ids, **settings), before)
