"""What a running stream sees of prompts that are computed in the same passes: short passes, and a report of its own tokens."""

import asyncio

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CaptureSpec, GenerationRequest
from steering.engine.options import EngineLimits
from steering.engine.transformers.scheduler import Work
from steering.model.loading import opened
from tests.engines import family_engine, run, run_all, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.polling import until
from tests.steering.engine.loop.driven import DrivenLoop, runner_of, sequence_of

PROMPT = tuple(b"Once upon a time")
LONG = tuple(b"A prompt that takes many passes while others go on writing, and is in no batch of theirs meanwhile, "
             b"decoding nothing at all, again and again.")  # fmt: skip


def prompt_positions(work: Work) -> int:
    """Positions of a pass that are no token of a stream."""
    return sum(count for sequence, count in work if sequence.prefilling)


def test_texts_to_be_read_never_weigh_more_than_a_prompt(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    limits = EngineLimits(prefill_tokens=48, idle_prefill_tokens=1000)
    loaded = opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny")
    runner = runner_of(loaded, 100)
    driven = DrivenLoop(runner, loaded, limits)
    driven.turn([sequence_of(loaded, PROMPT, 100)])
    driven.turn()
    texts = [sequence_of(loaded, tuple(bytes([65 + n]) * 30), capture=CaptureSpec((2,), "all")) for n in range(40)]
    driven.loop.submit(texts)
    driven.loop.collect()
    sizes = []
    while any(not text.stream.closed and text.remaining for text in texts):
        driven.scheduler.admit()
        work = driven.scheduler.schedule()
        assert any(not sequence.prefilling for sequence, _ in work), "the stream decodes in every pass"
        sizes.append(prompt_positions(work))
        driven.run(work)
    runner.close()
    assert len(sizes) > 10
    assert max(sizes) <= limits.prefill_tokens


@pytest.mark.parametrize("scope", ["generated", "all"])
async def test_a_dose_counts_no_pass_of_others(scope: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    limits = EngineLimits(prefill_tokens=8, share_prefixes=False)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        items = [{"vector": "alpha", "strength": 1.0, "layers": [0, 1, 2], "scope": {"tokens": scope}}]
        plan = await plan_for(items, vectors_for(engine.info), engine.info)
        request = GenerationRequest(LONG, sampling(6), plan)
        alone = await run(engine, request)
        others = [GenerationRequest(PROMPT, sampling(60), plan) for _ in range(5)]
        under_way = asyncio.create_task(run_all(engine, others))
        await until(lambda: engine.stats().generated_tokens >= 6 + 10)
        together = await run(engine, request)
        await under_way
    assert together.tokens == alone.tokens
    for dose, expected in zip(together.finish.steering.doses, alone.finish.steering.doses, strict=True):
        assert dose == pytest.approx(expected, rel=1e-3)
