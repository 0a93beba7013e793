"""The two ends of the residual stream: the head makes of the last residual what the model says, whatever its architecture."""

import asyncio
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, FitTask, GenerationRequest, Position, TokenPair
from steering.engine.options import EngineLimits
from steering.engine.transformers.engine import TransformersEngine
from steering.errors import EngineDead, InvalidRequest
from steering.model.layout import find_layout
from tests.engines import engine_over, family_engine, run, sampling
from tests.families import FAMILIES, LLAMA_LIKE, build
from tests.plans import plan_for, vectors_for

IDS = tuple(b"The cat sat on the mat")
SCALED = {
    "cohere": lambda: build("CohereForCausalLM", **LLAMA_LIKE, logit_scale=0.25),
    "granite": lambda: build("GraniteForCausalLM", **LLAMA_LIKE, logits_scaling=4.0),
    "gemma2 capped": lambda: build("Gemma2ForCausalLM", **LLAMA_LIKE, final_logit_softcapping=5.0),
}
"""Architectures that change the logits after the head."""
MODELS: dict[str, Callable[[], PreTrainedModel]] = {**FAMILIES, **SCALED}


def own_logits(model: PreTrainedModel) -> torch.Tensor:
    """(token, vocab) as transformers alone computes them."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("family", MODELS)
async def test_the_last_residual_gives_the_models_own_logits(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = own_logits(MODELS[family]())
    async with engine_over(MODELS[family](), hf_byte_tokenizer) as engine:
        last = engine.info.layer_count - 1
        (read,) = await engine.capture([CapturePrompt(IDS)], CaptureSpec((last,), "all"))
        found = await engine.unembed(read.activations[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


async def test_pieces_join_to_the_same_logits(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    residual = torch.randn(11, 32)
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        whole = await engine.unembed(residual)
    async with family_engine("llama", hf_byte_tokenizer, EngineLimits(prefill_tokens=4)) as engine:
        pieces = await engine.unembed(residual)
        assert (await engine.unembed(residual[:0])).shape == (0, engine.info.vocab_size)
    torch.testing.assert_close(pieces, whole)


async def test_no_request_notices_and_nothing_is_left_behind(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        plan = await plan_for([{"vector": "alpha", "strength": 2.0}], vectors_for(engine.info), engine.info)
        request = GenerationRequest(IDS, sampling(24), plan)
        alone = await run(engine, request)
        besides, _ = await asyncio.gather(
            run(engine, request), asyncio.gather(*(engine.unembed(torch.randn(5, 32)) for _ in range(6)))
        )
        assert besides.tokens == alone.tokens
        blocks = engine._runner._layout.blocks
        assert [len(block._forward_hooks) for block in blocks] == [1] * len(blocks)


async def test_it_does_not_wait_for_a_fit(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = (TokenPair(IDS, tuple(b"The cat sat on a rat"), 4),)
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        begun = asyncio.Event()
        task = FitTask(pairs, layer=1, amount=1.0, steps=100_000)
        fitting = asyncio.create_task(engine.fit(task, progress=lambda *_: begun.set()))
        await begun.wait()
        assert (await engine.unembed(torch.randn(3, 32))).shape == (3, engine.info.vocab_size)
        assert not fitting.done()
        fitting.cancel()


async def test_what_is_no_residual_is_refused(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        for wrong in (torch.randn(3, 31), torch.randn(32), torch.randn(1, 3, 32)):
            with pytest.raises(InvalidRequest, match="residuals must be"):
                await engine.unembed(wrong)
    with pytest.raises(EngineDead):
        await engine.unembed(torch.randn(3, 32))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
async def test_input_embeddings_are_read_at_the_same_positions(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES[family]()
    with torch.no_grad():
        table = find_layout(model).embedding(torch.tensor(IDS))
    async with family_engine(family, hf_byte_tokenizer) as engine:
        await _check_positions(engine, table)


async def _check_positions(engine: TransformersEngine, table: torch.Tensor) -> None:
    expected: dict[Position, torch.Tensor] = {
        "last": table[-1:],
        "mean": table[1:].mean(0, keepdim=True),
        "all": table,
        -2: table[-2:-1],
    }
    for position, rows in expected.items():
        spec = CaptureSpec((0,), position, embeddings=True)
        (read,) = await engine.capture([CapturePrompt(IDS)], spec)
        torch.testing.assert_close(read.embeddings, rows)
    (read,) = await engine.capture([CapturePrompt(IDS)], CaptureSpec((0,)))
    assert read.embeddings is None
