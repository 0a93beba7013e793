"""Rotary frequencies are constant: a long request changes nothing for a short one that shares its pass."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.model.loading import freeze_rope
from tests.engines import engine_over, run, run_all, sampling
from tests.families import LLAMA_LIKE, build

ORIGINAL = 64
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def phi3() -> PreTrainedModel:
    return build(
        "Phi3ForCausalLM",
        **LLAMA_LIKE,
        rope_parameters=dict(LONGROPE),
        original_max_position_embeddings=ORIGINAL,
    )


def llama() -> PreTrainedModel:
    return build("LlamaForCausalLM", **LLAMA_LIKE, rope_parameters=dict(DYNAMIC))


@pytest.mark.parametrize("make", [phi3, llama])
async def test_a_short_request_is_the_same_next_to_a_long_one(
    make: Any, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    short = GenerationRequest(tuple(b"a prompt of 20 token"), sampling(20))
    long = GenerationRequest(tuple(range(100, 200)), sampling(20))
    async with engine_over(make(), hf_byte_tokenizer) as engine:
        alone = await run(engine, short)
        together, _ = await run_all(engine, [short, long])
    assert together.tokens == alone.tokens


def test_longrope_takes_the_long_set_where_the_context_exceeds_the_original() -> None:
    ids = torch.arange(100)[None]
    frozen, short, plain = phi3(), phi3(), phi3()
    freeze_rope(frozen, 256)
    freeze_rope(short, ORIGINAL)
    reference = plain(ids).logits
    assert torch.equal(frozen(ids).logits, reference)
    assert not torch.equal(short(ids).logits, reference)
    assert torch.equal(short(ids[:, :20]).logits, plain(ids[:, :20]).logits)
    assert not torch.equal(frozen(ids[:, :20]).logits, plain(ids[:, :20]).logits)


def test_dynamic_frequencies_are_those_of_the_trained_context() -> None:
    ids = torch.arange(200)[None]
    frozen, plain = llama(), llama()
    freeze_rope(frozen, 256)
    assert torch.equal(frozen(ids).logits, plain(ids).logits)
