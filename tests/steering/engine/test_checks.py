"""Sampling parameters out of their range are refused by the engine itself, before they can fail a batch."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest, SamplingParams
from steering.errors import InvalidRequest
from tests.engines import family_engine, run

WRONG: list[dict[str, Any]] = [
    {"max_tokens": 0},
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"top_k": -1},
    {"min_p": 2.0},
    {"repetition_penalty": 0.0},
    {"presence_penalty": float("inf")},
    {"frequency_penalty": float("nan")},
    {"logprobs": -1},
    {"logprobs": 265},
    {"logit_bias": {264: 1.0}},
    {"logit_bias": {-1: 1.0}},
    {"logit_bias": {3: float("nan")}},
    {"stop": ("",)},
]


async def test_parameters_out_of_range_are_refused_by_name(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        for wrong in WRONG:
            (name,) = wrong
            with pytest.raises(InvalidRequest, match=name) as refusal:
                await run(engine, GenerationRequest(tuple(b"abc"), SamplingParams(**{"max_tokens": 2, **wrong})))
            assert refusal.value.param == name
        edge = SamplingParams(max_tokens=2, logprobs=264, logit_bias={0: -1.0, 263: 5.0})
        await run(engine, GenerationRequest(tuple(b"abc"), edge))
