"""What every Engine of the table promises, and the scripted one of the tests with it, since it is an Engine as well."""

import re
from dataclasses import replace
from time import monotonic

import pytest
import torch

from steering.engine import ENGINES
from steering.engine.api import (
    CapturePrompt,
    CaptureSpec,
    Engine,
    FitTask,
    GenerationRequest,
    Position,
    SamplingParams,
    TokenPair,
)
from steering.engine.capabilities import (
    SupportsFitting,
    SupportsUnembed,
    check_grammar,
    fitting_of,
    reads_attention,
    steers_token_scopes,
    takes_grammars,
    unembedding_of,
)
from steering.errors import ContextLengthExceeded, EngineDead, InvalidRequest, UnsupportedParameter
from steering.schemas.messages import SpanPosition
from steering.schemas.structured import Grammar
from tests.contracts.engines import SCRIPTED
from tests.engines import run, run_all, run_alone, sampling
from tests.plans import plan_for, random_items, vectors_for
from tests.polling import until

PROMPTS = [tuple(b"Once upon a time"), tuple(b"Hm"), tuple(b"What would you say about that?")]


def test_an_engine_is_complete_when_it_is_opened(engine: Engine) -> None:
    assert engine.name in {*ENGINES, SCRIPTED}
    assert len(engine.info.typical_norms) == engine.info.layer_count
    assert all(norm > 0 for norm in engine.info.typical_norms)


async def test_a_mixed_batch_equals_each_alone(engine: Engine) -> None:
    vectors = vectors_for(engine.info)
    requests = [
        GenerationRequest(
            PROMPTS[seed % 3],
            sampling(5 + seed, temperature=seed % 2 * 0.8, seed=seed),
            await plan_for(random_items(seed, engine.info.layer_count), vectors, engine.info),
        )
        for seed in range(8)
    ]
    together, alone = await run_all(engine, requests), await run_alone(engine, requests)
    assert [outcome.tokens for outcome in together] == [outcome.tokens for outcome in alone]


async def test_a_plan_of_strength_zero_equals_no_plan(engine: Engine) -> None:
    vectors = vectors_for(engine.info)
    nothing = await plan_for([{"vector": "alpha", "strength": 0.0, "layers": "all"}], vectors, engine.info)
    bare, zero = await run_all(
        engine, [GenerationRequest(PROMPTS[0], sampling(8)), GenerationRequest(PROMPTS[0], sampling(8), nothing)]
    )
    assert bare.tokens == zero.tokens


async def test_tokens_chosen_by_id_are_steered_or_refused_as_the_engine_declares(engine: Engine) -> None:
    chosen = {"vector": "alpha", "strength": 9.0, "layers": "all", "scope": {"token_ids": [PROMPTS[0][-1]]}}
    plan = await plan_for([chosen], vectors_for(engine.info), engine.info)
    request = GenerationRequest(PROMPTS[0], sampling(8), plan)
    if not steers_token_scopes(engine):
        with pytest.raises(UnsupportedParameter, match=engine.name):
            await run(engine, request)
        return
    assert (await run(engine, request)).tokens != (await run(engine, GenerationRequest(PROMPTS[0], sampling(8)))).tokens


async def test_a_grammar_holds_or_is_refused_as_the_engine_declares(engine: Engine) -> None:
    grammar = Grammar("regex", "[0-9]{3}-[0-9]{2}")
    if not takes_grammars(engine):
        with pytest.raises(UnsupportedParameter, match=engine.name):
            await check_grammar(engine, grammar)
        return
    params = [SamplingParams(temperature=temperature, seed=3, grammar=grammar) for temperature in (0.0, 1.0)]
    for outcome in await run_all(engine, [GenerationRequest(PROMPTS[0], one) for one in params]):
        assert re.fullmatch(grammar.text, outcome.text), outcome.text
        assert outcome.finish.reason == "stop"


async def test_events_are_numbered_and_the_last_says_how_it_ended(engine: Engine) -> None:
    outcome = await run(engine, GenerationRequest(PROMPTS[0], sampling(6)))
    assert [event.index for event in outcome.events[:-1]] == list(range(6))
    assert outcome.finish.reason == "length"
    assert outcome.finish.completion_tokens == 6
    assert outcome.finish.prompt_tokens == len(PROMPTS[0])
    assert all(event.finish is None for event in outcome.events[:-1])


async def test_the_first_event_says_when_the_request_left_the_queue(engine: Engine) -> None:
    asked = monotonic()
    outcome = await run(engine, GenerationRequest(PROMPTS[0], sampling(3)))
    first, *others = outcome.events
    assert first.scheduled is not None
    assert asked <= first.scheduled <= monotonic()
    assert [event.scheduled for event in others] == [None] * 3


async def test_a_reader_that_leaves_frees_its_row(engine: Engine) -> None:
    for taken in (0, 1, 3):
        stream = engine.generate(GenerationRequest(PROMPTS[0], sampling(100)))
        for _ in range(taken):
            await anext(stream)
        await stream.aclose()
    await until(lambda: engine.stats().running == engine.stats().waiting == 0, 120)
    assert len((await run(engine, GenerationRequest(PROMPTS[0], sampling(4)))).tokens) == 4


async def test_captures_come_in_order_with_progress(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    prompts = [CapturePrompt(f"text {n}") for n in range(5)]
    captures = await engine.capture(
        prompts, CaptureSpec((0, 1)), progress=lambda done, total: seen.append((done, total))
    )
    assert [total for _, total in seen] == [5] * 5
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5]
    for prompt, capture in zip(prompts, captures, strict=True):
        assert capture.token_ids == engine.tokenizer.encode(prompt.prompt)
        assert capture.activations.shape == (2, 1, engine.info.d_model)
    again = await engine.capture(prompts[3:4], CaptureSpec((0, 1)))
    assert (again[0].activations - captures[3].activations).abs().max() < 1e-3


async def test_a_capture_reads_a_span(engine: Engine) -> None:
    """Its mean is that of the tokens whose text it is, the last time the text contains it."""
    prompts = [CapturePrompt("text of a text 3")]
    (every,) = await engine.capture(prompts, CaptureSpec((0, 1), "all"))
    (found,) = await engine.capture(prompts, CaptureSpec((0, 1), SpanPosition(span="text")))
    if engine.name == SCRIPTED:  # whose residuals are noise of the whole text
        return
    texts = [engine.tokenizer.token_text(one) for one in every.token_ids]
    windows = [(start, end) for end in range(len(texts) + 1) for start in range(end)]
    inside = [one for one in windows if "text" in "".join(texts[slice(*one)])]
    start, end = max(inside, key=lambda one: (one[0], -one[1]))  # the last, and of these the shortest
    expected = every.activations[:, start:end].mean(1, keepdim=True)
    torch.testing.assert_close(found.activations, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidRequest, match="text 0 does not contain the span 'tax'"):
        await engine.capture(prompts, CaptureSpec((0,), SpanPosition(span="tax")))


async def test_the_token_that_attends_to_a_span_is_read_or_refused_as_the_engine_declares(engine: Engine) -> None:
    prompts, spec = (
        [CapturePrompt("text of a text 3")],
        CaptureSpec((0, 1), SpanPosition(span="text", read="attending")),
    )
    if not reads_attention(engine):
        with pytest.raises(UnsupportedParameter, match=engine.name):
            await engine.capture(prompts, spec)
        return
    (every,) = await engine.capture(prompts, CaptureSpec((0, 1), "all"))
    (found,) = await engine.capture(prompts, spec)
    assert found.activations.shape == (2, 1, engine.info.d_model)
    if engine.name == SCRIPTED:  # whose residuals are noise of the whole text
        return
    later = every.activations[:, -2:]  # " 3"
    assert ((later - found.activations).abs().amax(-1) < 1e-4).any(1).all()


async def test_a_capture_of_no_prompts_is_empty(engine: Engine) -> None:
    assert await engine.capture([], CaptureSpec((0,))) == ()


async def test_a_capture_may_begin_behind_what_its_texts_have_in_common(engine: Engine) -> None:
    before = PROMPTS[0] * 4
    texts = [(*before, *f"answer {n}".encode()) for n in range(3)]
    spec = CaptureSpec((0, 1), "all", logits=True)
    whole = await engine.capture([CapturePrompt(text) for text in texts], spec)
    first = len(before) - 1
    for one, all_of_it in zip(
        await engine.capture([CapturePrompt(text, first=first) for text in texts], spec), whole, strict=True
    ):
        assert one.token_ids == all_of_it.token_ids
        assert one.activations.shape[1] == len(one.token_ids) - first
        if engine.info.architecture != "fake":
            torch.testing.assert_close(one.activations, all_of_it.activations[:, first:], rtol=1e-3, atol=1e-3)
        assert one.logits is not None
        assert all_of_it.logits is not None
        torch.testing.assert_close(one.logits, all_of_it.logits[first:], rtol=1e-3, atol=1e-3)
    with pytest.raises(InvalidRequest, match="first"):
        await engine.capture([CapturePrompt(texts[0], first=len(texts[0]))], spec)


async def test_a_fit_comes_out_the_same_twice_with_progress(engine: Engine) -> None:
    if not isinstance(engine, SupportsFitting):
        with pytest.raises(UnsupportedParameter, match=engine.name):
            fitting_of(engine)
        return
    fitting = fitting_of(engine)
    seen: list[tuple[int, int]] = []
    pairs = (TokenPair(tuple(b"so warm"), tuple(b"so cold"), 3), TokenPair(tuple(b"how good"), tuple(b"how bad"), 4))
    task = FitTask(pairs, layer=1, amount=1.0, steps=4, batch=2)
    fitted = await fitting.fit(task, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert fitted.direction.shape == (engine.info.d_model,)
    assert float(fitted.direction.norm()) == pytest.approx(1.0, abs=1e-5)
    assert len(fitted.losses) == 4
    assert torch.equal((await fitting.fit(task)).direction, fitted.direction)
    with pytest.raises(InvalidRequest):
        await fitting.fit(replace(task, layer=engine.info.layer_count))


async def test_residuals_become_logits_each_row_by_itself(engine: Engine) -> None:
    if not isinstance(engine, SupportsUnembed):
        with pytest.raises(UnsupportedParameter, match=engine.name):
            unembedding_of(engine)
        return
    unembedding = unembedding_of(engine)
    residual = torch.randn(5, engine.info.d_model, generator=torch.Generator().manual_seed(1))
    logits = await unembedding.unembed(residual)
    assert (logits.shape, logits.dtype) == ((5, engine.info.vocab_size), torch.float32)
    torch.testing.assert_close(await unembedding.unembed(residual[3:4]), logits[3:4], rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidRequest):
        await unembedding.unembed(residual[:, 1:])


async def test_input_embeddings_are_captured_with_the_activations(engine: Engine) -> None:
    read: tuple[tuple[Position, int], ...] = (("last", 1), ("all", len(PROMPTS[0])))
    for position, count in read:
        spec = CaptureSpec((0,), position, embeddings=True)
        (capture,) = await engine.capture([CapturePrompt(PROMPTS[0])], spec)
        assert capture.embeddings is not None
        assert capture.embeddings.shape == capture.activations.shape[1:] == (count, engine.info.d_model)
    (without,) = await engine.capture([CapturePrompt(PROMPTS[0])], CaptureSpec((0,)))
    assert without.embeddings is None


async def test_what_cannot_be_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextLengthExceeded):
        await run(engine, GenerationRequest(PROMPTS[0], SamplingParams(max_tokens=engine.info.context_length)))
    with pytest.raises(InvalidRequest):
        await engine.capture([CapturePrompt("text")], CaptureSpec((engine.info.layer_count,)))


async def test_closing_is_final_and_harmless_when_repeated(engine: Engine) -> None:
    await engine.close()
    await engine.close()
    assert not engine.stats().alive
    with pytest.raises(EngineDead):
        await run(engine, GenerationRequest(PROMPTS[0], sampling(2)))
