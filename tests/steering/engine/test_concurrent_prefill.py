"""What a running stream sees of prompts that are computed beside it: short passes, and a report of its own tokens alone."""

import asyncio
import threading

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.engine.options import EngineLimits
from steering.engine.transformers.runner import PassResult
from steering.engine.transformers.sequence import Sequence
from tests.engines import family_engine, run, run_all, sampling
from tests.plans import plan_for, vectors_for
from tests.polling import until

PROMPT = tuple(b"Once upon a time")
LONG = tuple(b"A prompt that takes many passes while others go on writing, and is an idle row of their batch meanwhile, "
             b"decoding nothing at all, again and again.")  # fmt: skip


async def test_texts_to_be_read_never_weigh_more_than_a_stream(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    limits = EngineLimits(prefill_tokens=48, idle_prefill_tokens=1000)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        real, decode = engine._runner.prefill, engine._runner.decode
        sizes: list[int] = []
        texts_are_there = threading.Event()

        def prefill(work: list[tuple[Sequence, int]]) -> PassResult:
            if any(
                sequence.capture is None and not sequence.prefilling for sequence in engine._scheduler.running.values()
            ):
                sizes.append(sum(count for _, count in work))
            return real(work)

        def decode_with_texts(rows: list[Sequence | None], idle: list[int]) -> PassResult:
            if engine.stats().generated_tokens >= 3:
                texts_are_there.wait(60)
            return decode(rows, idle)

        engine._runner.prefill = prefill  # type: ignore[method-assign]  # the same, and a note of its size
        engine._runner.decode = decode_with_texts  # type: ignore[method-assign]  # else it may end before they come
        stream = asyncio.create_task(run(engine, GenerationRequest(PROMPT, sampling(150))))
        await until(lambda: engine.stats().generated_tokens >= 3)
        texts = [CapturePrompt(tuple(bytes([65 + n]) * 30)) for n in range(40)]
        capture = asyncio.create_task(engine.capture(texts, CaptureSpec((2,), "all")))
        await asyncio.sleep(0)  # in which they are handed over
        texts_are_there.set()
        await capture
        await stream
    assert len(sizes) > 10
    assert max(sizes) <= limits.prefill_tokens


@pytest.mark.parametrize("scope", ["generated", "all"])
async def test_a_dose_counts_no_pass_in_which_the_row_was_idle(
    scope: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    limits = EngineLimits(prefill_tokens=8, prefix_bytes=0)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        items = [{"vector": "alpha", "strength": 1.0, "layers": [0, 1, 2], "scope": {"tokens": scope}}]
        plan = await plan_for(items, vectors_for(engine.info), engine.info)
        request = GenerationRequest(LONG, sampling(6), plan)
        alone = await run(engine, request)
        others = [GenerationRequest(PROMPT, sampling(60), plan) for _ in range(5)]
        under_way = asyncio.create_task(run_all(engine, others))
        await until(lambda: engine.stats().generated_tokens >= 6 + 10)
        beside = await run(engine, request)
        await under_way
    assert beside.tokens == alone.tokens
    for dose, expected in zip(beside.finish.steering.doses, alone.finish.steering.doses, strict=True):
        assert dose == pytest.approx(expected, rel=1e-3)
