"""Texts that begin alike are read as if each were alone, and what they have in common is computed once."""

import asyncio

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, Position
from steering.engine.options import EngineLimits
from tests.engines import family_engine
from tests.plans import plan_for, vectors_for

TEXTS = [
    tuple(text)
    for text in (
        b"Tell me of the sea. It is a joy.",
        b"Tell me of the sea. It is a bore.",
        b"Tell me of the sea. It is a bore, and the longest sentence of all comes last here.",
        b"Tell me of the hills. They are high.",
        b"Tell me of the sea. It is a joy.",
        b"Nothing",
    )
]
DISTINCT = len({text[: n + 1] for text in TEXTS for n in range(len(text))})
"""Positions whose beginning nobody else has; what two equal texts ask of the last position is computed for each."""


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
@pytest.mark.parametrize("position", ["last", -3, "mean", "all"])
@pytest.mark.parametrize(
    "limits", [EngineLimits(), EngineLimits(idle_prefill_tokens=40), EngineLimits(max_running=2)], ids=repr
)
async def test_each_reads_as_alone(
    family: str, position: Position, limits: EngineLimits, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    spec = CaptureSpec((0, 1, 2), position)
    async with family_engine(family, hf_byte_tokenizer, limits) as engine:
        together = await engine.capture([CapturePrompt(text) for text in TEXTS], spec)
        alone = [(await engine.capture([CapturePrompt(text)], spec))[0] for text in TEXTS]
    for read, expected in zip(together, alone, strict=True):
        assert read.token_ids == expected.token_ids
        torch.testing.assert_close(read.activations, expected.activations, rtol=1e-4, atol=1e-5)


async def test_a_common_beginning_is_computed_once(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        await engine.capture([CapturePrompt(text) for text in TEXTS], CaptureSpec((1,), "last"))
        assert engine.stats().prompt_tokens == DISTINCT + 1


@pytest.mark.parametrize(
    "spec", [CaptureSpec((1,), "all"), CaptureSpec((1,), "mean"), CaptureSpec((1,), "last", logits=True)]
)
async def test_what_reads_its_beginning_computes_it(
    spec: CaptureSpec, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        await engine.capture([CapturePrompt(text) for text in TEXTS], spec)
        assert engine.stats().prompt_tokens == sum(map(len, TEXTS))


async def test_a_steered_text_takes_nothing_and_gives_nothing(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    spec = CaptureSpec((0, 1, 2), "last")
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        items = [{"vector": "alpha", "strength": 2.0, "layers": [0]}]
        plan = await plan_for(items, vectors_for(engine.info), engine.info)
        prompts = [CapturePrompt(text, plan=plan) if n % 2 else CapturePrompt(text) for n, text in enumerate(TEXTS)]
        together = await engine.capture(prompts, spec)
        alone = [(await engine.capture([prompt], spec))[0] for prompt in prompts]
    for read, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(read.activations, expected.activations, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bloom"])
async def test_who_reads_deep_takes_nothing_from_who_stops_early(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two calls whose texts begin alike and meet: a text that stopped at the first layer has nothing for the layers above."""
    async with family_engine(family, hf_byte_tokenizer) as engine:
        prompts = [CapturePrompt(text) for text in TEXTS]
        expected = await engine.capture(prompts, CaptureSpec((0, 1, 2), "last"))
        await engine.capture([CapturePrompt(tuple(b"Other things lay in these slots before"))] * 12, CaptureSpec((2,)))
        shallow, deep = await asyncio.gather(
            engine.capture(prompts, CaptureSpec((0,), "last")), engine.capture(prompts, CaptureSpec((0, 1, 2), "last"))
        )
    for low, read, right in zip(shallow, deep, expected, strict=True):
        torch.testing.assert_close(read.activations, right.activations, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(low.activations, right.activations[:1], rtol=1e-4, atol=1e-5)
