"""The token that attends most to a phrase is the one that transformers' own attention weights name, and the texts where it cannot be
found are refused."""

import asyncio

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, FitTask, Prompt, TokenPair
from steering.engine.captures import result
from steering.engine.prompts import MAX_TEXT_TOKENS
from steering.engine.transformers.loop import MAX_WAITING
from steering.errors import InvalidRequest, LimitExceeded, UnsupportedParameter
from steering.injection.readouts import MonitorTables, ReadoutCollector
from steering.injection.rows import CaptureState, Segment, SteeredRow
from steering.pairs import ChatMessage
from steering.plan.types import UNSTEERED
from steering.schemas.messages import SpanPosition
from tests.engines import engine_over, family_engine
from tests.families import FAMILIES, LLAMA_LIKE, build
from tests.plans import plan_for, vectors_for
from tests.steering.engine.test_capture import hidden

ATTENDING = SpanPosition(span="café", read="attending")
LAYERS = (0, 1, 2)


def weights(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    """(layer, head, token, attended token) by transformers' eager attention."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), use_cache=False, output_attentions=True).attentions
    return torch.cat(found)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "qwen2_moe"])
async def test_it_is_the_token_that_attention_weights_name(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """With windows, a softcap, heads that share keys, and a plan, which acts on the residual that is read alone."""
    text = "the café cat and a café, where it sat by the door and slept"
    texts: list[Prompt] = [
        text,
        (ChatMessage("user", "A café?"), ChatMessage("assistant", "A cat")),
        tuple(text.encode()),
        "café!",
    ]
    async with family_engine(family, hf_byte_tokenizer) as engine:
        plan = await plan_for(
            [{"vector": "alpha", "strength": 4.0, "layers": [1]}], vectors_for(engine.info), engine.info
        )
        for acting in (plan, None):
            prompts = [CapturePrompt(one) if acting is None else CapturePrompt(one, plan=acting) for one in texts]
            read = await engine.capture(prompts, CaptureSpec(LAYERS, ATTENDING, embeddings=True))
            every = await engine.capture(prompts, CaptureSpec(LAYERS, "all", embeddings=True))
            for found, whole in zip(read, every, strict=True):
                ids = whole.token_ids
                end = "".join(map(chr, ids)).rindex("".join(map(chr, "café".encode()))) + len("café".encode())
                start = end - len("café".encode())
                to_phrase = weights(FAMILIES[family](), ids)[:, :, end:, start:end].sum(-1).mean(1)
                chosen = end + to_phrase.argmax(-1)
                assert found.activations.shape == (len(LAYERS), 1, engine.info.d_model)
                for layer in LAYERS:
                    torch.testing.assert_close(
                        found.activations[layer, 0], whole.activations[layer, chosen[layer]], rtol=1e-4, atol=1e-5
                    )
                assert found.embeddings is not None
                assert whole.embeddings is not None
                torch.testing.assert_close(found.embeddings[0], whole.embeddings[chosen[0]])
    torch.testing.assert_close(
        found.activations[0, 0], hidden(FAMILIES[family](), ids)[0, chosen[0]], rtol=1e-4, atol=1e-5
    )


async def test_layers_may_choose_different_tokens_and_texts_do_not_change_each_other(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    texts = [f"the café {'and the cat sat by the door ' * n}number {n}" for n in range(1, 9)]
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        together = await engine.capture([CapturePrompt(one) for one in texts], CaptureSpec(LAYERS, ATTENDING))
        chosen = []
        for text, found in zip(texts, together, strict=True):
            (alone,) = await engine.capture([CapturePrompt(text)], CaptureSpec((2,), ATTENDING))
            torch.testing.assert_close(alone.activations[0], found.activations[2], rtol=1e-4, atol=1e-5)
            (every,) = await engine.capture([CapturePrompt(text)], CaptureSpec(LAYERS, "all"))
            distance = (every.activations - found.activations).norm(dim=-1)
            chosen.append(tuple(distance.argmin(-1).tolist()))
        assert engine.stats().running == 0
    assert any(len(set(one)) > 1 for one in chosen)
    assert any(one[0] != len(text.encode()) - 1 for one, text in zip(chosen, texts, strict=True))


async def test_texts_where_it_cannot_be_found_are_refused(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        spec = CaptureSpec((1,), ATTENDING)
        for text, message in (("a cat", "text 1 does not contain"), ("a café", "text 1 ends with the span 'café'")):
            with pytest.raises(InvalidRequest, match=message):
                await engine.capture([CapturePrompt("café cat"), CapturePrompt(text)], spec)
    long = build("LlamaForCausalLM", **{**LLAMA_LIKE, "max_position_embeddings": 2 * MAX_TEXT_TOKENS})
    async with engine_over(long, hf_byte_tokenizer) as engine:
        with pytest.raises(LimitExceeded, match=f"text 0 has {MAX_TEXT_TOKENS + 1} tokens"):
            await engine.capture([CapturePrompt("café".ljust(MAX_TEXT_TOKENS - 1))], spec)


async def test_a_model_that_computes_attention_by_itself_refuses(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("bloom", hf_byte_tokenizer) as engine:
        with pytest.raises(UnsupportedParameter, match="cannot read the attention of BloomForCausalLM"):
            await engine.capture([CapturePrompt("café cat")], CaptureSpec((1,), ATTENDING))


async def test_many_calls_wait_their_turn_as_other_reads_do(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """More calls than there may be background tasks, while a direction is fitted."""
    task = FitTask((TokenPair((1, 2, 3), (1, 2, 4), 2),) * 4, layer=1, amount=1.0, steps=100_000)
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        fitting = asyncio.ensure_future(engine.fit(task))
        calls = [[CapturePrompt(f"{n} café cat")] for n in range(2 * MAX_WAITING)]
        read = await asyncio.gather(*(engine.capture(one, CaptureSpec((1,), ATTENDING), priority=0) for one in calls))
        assert not fitting.done()
        fitting.cancel()
    assert len({tuple(one.activations.flatten().tolist()) for (one,) in read}) == len(calls)


def test_only_the_rows_that_are_chosen_are_kept() -> None:
    """Of two passes over a text: layer 0 chose a token of the first, layer 2 one of the second."""
    state = CaptureState(0, (0, 2), (2, 8), 0, reduce=True, phrase=(0, 2), attending=(3, 6))
    row = SteeredRow(ids=list(range(8)), prompt_length=8, plan=UNSTEERED, capture=state)
    residual = torch.randn(8, 4)
    for first, end in ((0, 5), (5, 8)):
        segments = [Segment(row, first, 0, end - first)]
        collector = ReadoutCollector(segments, MonitorTables(torch.device("cpu")))
        for layer in (0, 2):
            collector.read(layer, residual[first:end] * (layer + 1))
    assert {layer: [len(one) for one in pieces] for layer, pieces in state.pieces.items()} == {0: [1, 1], 2: [1, 1]}
    found = result(row, lambda _ids: torch.empty(0, 4))[1].activations
    assert torch.equal(found[:, 0], torch.stack([residual[3], residual[6] * 3]))


async def test_logits_alone_need_no_token(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        (found,) = await engine.capture([CapturePrompt("café cat")], CaptureSpec((), ATTENDING, logits=True))
    assert found.logits is not None
    assert found.logits.shape[0] == len(found.token_ids)
