"""Captures read what a plain hook reads, at every position kind, however the text was chunked and whoever else was there."""

import asyncio
import math
import threading

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.engine.captures import result
from steering.engine.options import EngineLimits
from steering.engine.transformers.engine import FED
from steering.errors import InvalidRequest, NonfiniteActivations, Overloaded
from steering.injection.readings import Reading
from steering.injection.rows import CaptureState, SteeredRow
from steering.model.hook_points import residual_of
from steering.model.layout import find_layout
from steering.pairs import ChatMessage
from steering.plan.types import UNSTEERED, DoseGuard
from steering.schemas.messages import SpanPosition
from steering.spec import SteeringSpec
from tests.engines import family_engine, run, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.polling import until
from tests.reference import Reference


def assert_set(event: threading.Event) -> None:
    """Waits for an event."""
    assert event.wait(60)


TEXTS = [tuple(b"The cat sat on the mat"), tuple(b"Hm"), tuple(b"A text that is rather longer than the others, by far")]


def hidden(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    """(layer, token, d_model) by plain hooks."""
    found: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _i, output: found.append(residual_of(output)[0]))
        for block in find_layout(model).blocks
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
@pytest.mark.parametrize("limits", [EngineLimits(), EngineLimits(idle_prefill_tokens=7, max_running=2)])
async def test_positions(family: str, limits: EngineLimits, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    expected = [hidden(FAMILIES[family](), ids) for ids in TEXTS]
    async with family_engine(family, hf_byte_tokenizer, limits) as engine:
        prompts = [CapturePrompt(ids) for ids in TEXTS]
        last = await engine.capture(prompts, CaptureSpec((0, 1, 2), "last"))
        before = await engine.capture(prompts, CaptureSpec((1,), -2))
        mean = await engine.capture(prompts, CaptureSpec((2, 0), "mean"))
        every = await engine.capture(prompts, CaptureSpec((0, 2), "all", logits=True))
    for index, read in enumerate(expected):
        torch.testing.assert_close(last[index].activations, read[:, -1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(before[index].activations, read[1:2, -2:-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            mean[index].activations, read[[2, 0], 1:].mean(1, keepdim=True), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(every[index].activations, read[[0, 2]], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            logits = FAMILIES[family]()(input_ids=torch.tensor([TEXTS[index]])).logits[0]
        torch.testing.assert_close(every[index].logits, logits, rtol=1e-4, atol=1e-4)


async def test_response_mean_reads_the_last_answer(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = (ChatMessage("user", "Hello"), ChatMessage("assistant", "Good day to you"))
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        ids = engine.tokenizer.encode(messages)
        start = bytes(i for i in ids if i < 256).find(b"Good day") + sum(i >= 256 for i in ids[: len(ids) // 2])
        (read,) = await engine.capture([CapturePrompt(messages)], CaptureSpec((1,), "response_mean"))
        whole = hidden(FAMILIES["llama"](), ids)[1]
        span = engine.tokenizer.response_span(messages)
        assert bytes(ids[slice(*span)]) == b"Good day to you"
        assert start <= span[0]
        torch.testing.assert_close(read.activations[0, 0], whole[slice(*span)].mean(0), rtol=1e-4, atol=1e-5)
        with pytest.raises(InvalidRequest, match="messages"):
            await engine.capture([CapturePrompt("plain text")], CaptureSpec((1,), "response_mean"))


async def test_a_span_reads_the_tokens_of_a_phrase(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """The last time a text contains it: in plain texts, conversations and token ids; with characters of several tokens."""
    messages = (ChatMessage("user", "a cat or a café cat?"), ChatMessage("assistant", "Good day, café cat"))
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        text = "the café cat and the café cat sat"
        prompts = [CapturePrompt(one) for one in (text, messages, tuple(text.encode()))]
        read = await engine.capture(prompts, CaptureSpec((1,), SpanPosition(span="fé cat")))
    for found, prompt in zip(read, prompts, strict=True):
        ids = engine.tokenizer.encode(prompt.prompt)
        marked = "".join(chr(one) for one in ids)
        start = marked.rindex("".join(map(chr, "fé cat".encode())))
        expected = hidden(FAMILIES["llama"](), ids)[1, start : start + len("fé cat".encode())].mean(0)
        torch.testing.assert_close(found.activations[0, 0], expected, rtol=1e-4, atol=1e-5)


async def test_a_text_without_the_span_is_named(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        prompts = [CapturePrompt(one) for one in ("the cat", "the dog")]
        with pytest.raises(InvalidRequest, match=r"text 1 does not contain the span 'cat'"):
            await engine.capture(prompts, CaptureSpec((1,), SpanPosition(span="cat")))


async def test_what_does_not_exist_is_refused(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        for spec in (
            CaptureSpec((3,)),
            CaptureSpec((-1,)),
            CaptureSpec(()),
            CaptureSpec((0,), -200),
            CaptureSpec((0,), 3),
        ):
            with pytest.raises(InvalidRequest):
                await engine.capture([CapturePrompt(TEXTS[0])], spec)
        with pytest.raises(InvalidRequest, match="prompt_length"):
            await engine.capture([CapturePrompt(TEXTS[0], prompt_length=99)], CaptureSpec((0,)))
        without_answer = CapturePrompt(TEXTS[0], prompt_length=len(TEXTS[0]))
        with pytest.raises(InvalidRequest, match="no token"):
            await engine.capture([without_answer], CaptureSpec((0,), "response_mean"))
        await engine.capture([without_answer], CaptureSpec((0,), "mean"))


async def test_teacher_forced_logits_equal_those_of_generation(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Re-reading a steered answer under its plan gives the distributions it was drawn from, late conditions included."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        for items in (
            [{"vector": "alpha", "layers": [1], "scope": {"tokens": "generated"}}],
            [{"vector": "alpha", "layers": [0], "when": {"vector": "beta", "above": 0.0, "layer": 1, "at": "prompt"}}],
            [
                {
                    "vector": "alpha",
                    "layers": [0],
                    "scope": {"tokens": "generated"},
                    "when": {"vector": "beta", "above": 0.0, "layer": 2, "at": "token"},
                }
            ],
        ):
            plan = await plan_for(items, vectors, engine.info)
            prompt = TEXTS[0]
            written = await run(engine, GenerationRequest(prompt, sampling(10, logprobs=0), plan))
            ids = (*prompt, *written.tokens)
            (read,) = await engine.capture([CapturePrompt(ids, plan, len(prompt))], CaptureSpec((), logits=True))
            assert read.logits is not None
            logprobs = torch.log_softmax(read.logits, dim=1)
            for event in written.events[:-1]:
                again = float(logprobs[len(prompt) - 1 + event.index, event.token_id])
                assert again == pytest.approx(event.logprob, abs=1e-4)


async def test_logits_that_are_not_finite_end_their_text_alone(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """No layer is captured, so the logits alone show that the steering overflowed."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        item = {"vector": "alpha", "layers": [1], "unit": "relative", "strength": 3e38}
        plan = await plan_for([item], vectors_for(engine.info), engine.info, DoseGuard(action="off"))
        with pytest.raises(NonfiniteActivations, match="the logits read are not finite; lower the strength"):
            await engine.capture([CapturePrompt(TEXTS[0], plan)], CaptureSpec((), "all", logits=True))
        (plain,) = await engine.capture([CapturePrompt(TEXTS[0])], CaptureSpec((), "all", logits=True))
        assert plain.logits is not None
        assert torch.isfinite(plain.logits).all()


def test_logits_that_are_masked_are_no_error() -> None:
    logits = torch.tensor([[0.0, -math.inf], [1.0, 2.0]])
    state = CaptureState(0, (), (0, 2), 0, reduce=False, wants_logits=True, wants_embeddings=False)
    state.logits.append(logits)
    row = SteeredRow(ids=[1, 2], prompt_length=2, plan=UNSTEERED, capture=state)
    assert result(row, lambda _ids: torch.empty(0, 4))[1].logits is not None
    logits[1, 0] = math.nan
    with pytest.raises(NonfiniteActivations, match="nothing steers: the model leaves the range of its data type"):
        result(row, lambda _ids: torch.empty(0, 4))


async def test_calls_of_one_salt_compute_the_beginning_of_a_text_once(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        plan = await plan_for(
            [{"vector": "alpha", "layers": [1], "scope": {"tokens": "generated"}}],
            vectors_for(engine.info),
            engine.info,
        )
        prompt = TEXTS[0] * 4
        rows = [CapturePrompt(prompt, each, len(prompt), len(prompt) - 1) for each in (UNSTEERED, plan)]
        alone = [(await engine.capture([row], CaptureSpec((), logits=True)))[0] for row in rows]
        assert engine.stats().cached_tokens == 0
        spec = CaptureSpec((), logits=True, cache_salt="caller")
        shared = [(await engine.capture([row], spec))[0] for row in rows]
        assert engine.stats().cached_tokens == (len(prompt) - 1) // 16 * 16
        for one, other in zip(alone, shared, strict=True):
            assert one.logits is not None
            assert other.logits is not None
            torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)


async def test_a_call_has_few_of_its_texts_in_the_queue(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """So that thousands of them delay no other request; the results are in the order of the texts all the same."""
    texts = [tuple(b"Text number %d" % (number * 37 % 200)) * (1 + number % 3) for number in range(200)]
    async with family_engine("llama", hf_byte_tokenizer, EngineLimits(max_background=4)) as engine:
        most, done = 0, list[int]()

        def progress(count: int, _: int) -> None:
            nonlocal most
            stats = engine.stats()
            most = max(most, stats.background_running + stats.background_waiting)
            done.append(count)

        found = await engine.capture([CapturePrompt(one) for one in texts], CaptureSpec((1,)), progress=progress)
    assert 4 <= most <= 4 * FED
    assert done == list(range(1, 201))
    assert [one.token_ids for one in found] == texts


async def test_a_text_that_fails_ends_its_call_and_leaves_nothing_behind(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with family_engine("llama", hf_byte_tokenizer, EngineLimits(max_background=4)) as engine:
        item = {"vector": "alpha", "layers": [1], "unit": "relative", "strength": 3e38}
        plan = await plan_for([item], vectors_for(engine.info), engine.info, DoseGuard(action="off"))
        texts = [CapturePrompt(tuple(b"%03d" % number)) for number in range(100)]
        texts[50] = CapturePrompt(TEXTS[0], plan)
        with pytest.raises(NonfiniteActivations):
            await engine.capture(texts, CaptureSpec((2,)))
        await until(lambda: engine.stats().background_running == engine.stats().background_waiting == 0)
        assert len(await engine.capture(texts[:50], CaptureSpec((2,)))) == 50


async def test_a_client_with_many_texts_has_none_of_another_refused(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    limits = EngineLimits(max_background=4, max_background_waiting=8)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        released = threading.Event()
        engine._loop.call(lambda: assert_set(released))
        many, few = (CaptureSpec((1,), client=client) for client in ("many", "few"))
        reading = asyncio.create_task(engine.capture([CapturePrompt(TEXTS[0])] * 400, many))
        await until(lambda: engine.stats().background_waiting == 4 * FED)
        with pytest.raises(Overloaded, match="16 texts or background requests of this caller"):
            await engine.capture([CapturePrompt(TEXTS[0])], many)
        other = asyncio.create_task(engine.capture([CapturePrompt(TEXTS[0])], few))
        await until(lambda: engine.stats().background_waiting == 4 * FED + 1)
        released.set()
        assert len(await other) == 1
        assert len(await reading) == 400


@pytest.mark.parametrize("at", ["prompt", "prompt_mean", "token"])
async def test_a_condition_behind_the_layer_that_is_read_acts_on_an_answer(
    at: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A pass that ends with the layer that is read would not decide it."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        when = {"vector": "beta", "above": -1e6, "layer": 2, "at": at}
        items = [{"vector": "alpha", "layers": [0], "scope": {"tokens": "generated"}, "when": when}]
        plan = await plan_for(items, vectors_for(engine.info), engine.info)
        steered, plain = (CapturePrompt(TEXTS[2], one, len(TEXTS[0])) for one in (plan, UNSTEERED))
        (alone,) = await engine.capture([steered], CaptureSpec((0,)))
        (together,) = await engine.capture([steered], CaptureSpec((0, 2)))
        (unsteered,) = await engine.capture([plain], CaptureSpec((0,)))
    torch.testing.assert_close(alone.activations[0], together.activations[0], rtol=1e-4, atol=1e-5)
    assert (alone.activations - unsteered.activations).abs().max() > 0.1


def test_only_passes_to_the_end_are_shared_among_calls() -> None:
    with pytest.raises(ValueError, match="needs logits"):
        CaptureSpec((0,), cache_salt="caller")


async def test_live_readout_is_the_projection_after_steering(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        entry = vectors["alpha"].layers[1]
        reading = Reading("alpha", 1, entry.direction, entry.scale)
        items = [{"vector": "alpha", "layers": [1], "scope": {"tokens": "generated"}}]
        plan = await plan_for(items, vectors, engine.info)
        written = await run(engine, GenerationRequest(TEXTS[0], sampling(6), plan, (reading,)))
    model = FAMILIES["llama"]()
    reference = Reference(
        model, find_layout(model).blocks, SteeringSpec.model_validate({"interventions": items}), vectors, len(TEXTS[0])
    )
    read: list[torch.Tensor] = []
    ids = list(TEXTS[0])
    for event in written.events[:-1]:
        reference.ids = ids
        handles = [block.register_forward_hook(reference._hook(layer)) for layer, block in enumerate(reference.blocks)]
        handles.append(reference.blocks[1].register_forward_hook(lambda _m, _i, out: read.append(out[0, -1])))
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        assert event.readout["alpha"] == pytest.approx(float(read[-1] @ entry.direction) / entry.scale, abs=1e-4)
        ids.append(event.token_id)
