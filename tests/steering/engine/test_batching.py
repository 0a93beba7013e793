"""Rows do not know of each other: mixed batches equal solo runs, chunks equal whole prompts, plain rows equal transformers."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.engine.options import EngineLimits
from tests.engines import family_engine, run_all, run_alone, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for

PROMPTS = [
    tuple(b"Once upon a time there was a king"),
    tuple(b"Hm"),
    tuple(b"What would you say about the weather of the last weeks, which was so very wet?"),
    tuple(b"1 2 3 4 5 6"),
]


@pytest.mark.parametrize("family", sorted(FAMILIES))
async def test_plain_rows_equal_transformers(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES[family]()
    async with family_engine(family, hf_byte_tokenizer) as engine:
        outcomes = await run_all(engine, [GenerationRequest(prompt, sampling(10)) for prompt in PROMPTS])
    for prompt, outcome in zip(PROMPTS, outcomes, strict=True):
        with torch.no_grad():
            expected = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=10,
                min_new_tokens=10,
                do_sample=False,
                eos_token_id=None,
            )
        assert outcome.tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
async def test_mixed_batch_of_32_random_plans_equals_solo_runs(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    # without shared prompts, because the report covers what was computed, not what was shared
    async with family_engine(family, hf_byte_tokenizer, EngineLimits(share_prefixes=False)) as engine:
        vectors = vectors_for(engine.info)
        requests = [
            GenerationRequest(
                PROMPTS[seed % len(PROMPTS)],
                sampling(6 + seed % 7, temperature=seed % 3 * 0.5, top_p=0.9, seed=seed),
                await plan_for(random_items(seed + 100, engine.info.layer_count), vectors, engine.info),
            )
            for seed in range(32)
        ]
        together = await run_all(engine, requests)
        alone = await run_alone(engine, requests)
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        assert one.finish.steering.fired_at == other.finish.steering.fired_at
        for dose, expected in zip(one.finish.steering.doses, other.finish.steering.doses, strict=True):
            assert dose == pytest.approx(expected, rel=1e-3, abs=1e-6)


async def test_chunked_prompts_equal_whole_ones(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("gemma3", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        requests = [
            GenerationRequest(
                PROMPTS[seed % len(PROMPTS)],
                sampling(6),
                await plan_for(random_items(seed + 300, engine.info.layer_count), vectors, engine.info),
            )
            for seed in range(16)
        ]
        whole = await run_all(engine, requests)
    limits = EngineLimits(prefill_tokens=5, idle_prefill_tokens=7, max_running=5)
    async with family_engine("gemma3", hf_byte_tokenizer, limits) as engine:
        chunked = await run_all(engine, requests)
    assert [outcome.tokens for outcome in chunked] == [outcome.tokens for outcome in whole]
    assert [o.finish.steering.fired_at for o in chunked] == [o.finish.steering.fired_at for o in whole]
