"""Answers that are held to a schema, a regular expression or a grammar: valid, steered or not, and alike alone and in a batch."""

import asyncio
import json
import math
import os
import random
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.cpu.kernels import operations
from steering.engine.grammars import Grammars, Matcher, allowed
from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.executor import SamplingKernel
from steering.engine.transformers.sampling import sample
from steering.errors import InvalidRequest, LimitExceeded
from steering.plan.types import SteeringPlan
from steering.schemas.structured import Grammar
from tests.engines import Outcome, engine_over, run, run_all, run_alone, run_at_once, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.steering.engine.cpu.kernels.test_sample_filters import FILTERS, nearly_excluded
from tests.steering.engine.sampling.test_sampler import PROMPT, row

SCHEMAS = int(os.environ.get("SCHEMA_CASES", "24"))
"""`make fuzz` has 200."""
TOKENS, CONTEXT = 1900, 2048
PHONE = Grammar("regex", r"\+[0-9]{2} [0-9]{3}-[0-9]{4}")
SUM = Grammar("lark", 'start: number ("+" number)~1..3\nnumber: /[1-9][0-9]?/')


def random_schema(seed: int) -> dict[str, Any]:
    """Returns a schema whose answers are finite: every string, number and list is bounded."""
    draw = random.Random(seed)

    def leaf() -> dict[str, Any]:
        return draw.choice(
            [
                {"type": "string", "minLength": draw.randint(0, 3), "maxLength": draw.randint(3, 6)},
                {"type": "integer", "minimum": draw.randint(-20, 0), "maximum": draw.randint(1, 500)},
                {"type": "integer", "multipleOf": draw.choice([5, 10, 60]), "minimum": 0, "maximum": 600},
                {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
                {"type": "boolean"},
                {"type": "null"},
                {"enum": draw.sample(["red", "green", 1, 2.5, None, True, ["x"], {"k": "v"}], draw.randint(1, 4))},
                {"const": draw.choice(["fixed", 7, False])},
                {"type": "string", "pattern": draw.choice(["^[a-c]{2,4}$", "^(on|off)$", r"^\d{2}-\d{2}$"])},
                {"type": "string", "format": draw.choice(["date", "time", "uuid", "ipv4"])},
            ]
        )

    def node(depth: int) -> dict[str, Any]:
        kind = draw.choice(["leaf", "object", "array", "any"] if depth else ["leaf"])
        if kind == "leaf":
            return leaf()
        if kind == "array":
            least = draw.randint(0, 2)
            return {
                "type": "array",
                "items": node(depth - 1),
                "minItems": least,
                "maxItems": least + draw.randint(0, 2),
            }
        if kind == "any":
            return {"anyOf": [node(depth - 1), leaf()]}
        return fields(depth)

    def fields(depth: int) -> dict[str, Any]:
        names = draw.sample(["a", "b c", "naïve", 'quo"te', "$ref x", "länge"], draw.randint(1, 4))
        needed = [name for name in names if draw.random() < 0.6]
        properties = {name: node(depth - 1) for name in names}
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}

    return fields(3)


def schema_request(schema: dict[str, Any], plan: SteeringPlan, seed: int, **settings: Any) -> GenerationRequest:
    grammar = Grammar("json_schema", json.dumps(schema))
    return GenerationRequest(
        PROMPT, SamplingParams(seed=seed, grammar=grammar, **{"max_tokens": TOKENS} | settings), plan
    )


async def steered_everywhere(engine: TransformersEngine) -> SteeringPlan:
    """A plan that acts at every layer and position."""
    items: list[dict[str, Any]] = [
        {"vector": "alpha", "layers": "all", "strength": 2.0},
        {"vector": "beta", "layers": "all", "operation": "ablate"},
    ]
    return await plan_for(items, vectors_for(engine.info), engine.info)


def long_model() -> PreTrainedModel:
    """A tiny model whose context holds whole answers."""
    model = FAMILIES["llama"]()
    model.config.max_position_embeddings = CONTEXT
    return model


@pytest.fixture
async def engine(hf_byte_tokenizer: PreTrainedTokenizerFast) -> AsyncIterator[TransformersEngine]:
    async with engine_over(long_model(), hf_byte_tokenizer) as opened:
        yield opened


def checked(schema: dict[str, Any], outcome: Outcome) -> Any:
    """Returns the value of an answer, which must have ended by itself and match its schema."""
    assert outcome.finish.reason == "stop", outcome.text[:200]
    value = json.loads(outcome.text)
    jsonschema.validate(value, schema)
    return value


async def test_every_answer_matches_its_schema_steered_at_every_layer(engine: TransformersEngine) -> None:
    """The model is random, so nothing but the mask makes it write JSON. In batches, every third row without a schema; what is streamed is
    the whole answer, and rows are as alone."""
    plan = await steered_everywhere(engine)
    schemas = [random_schema(seed) for seed in range(SCHEMAS)]
    requests = [schema_request(one, plan, seed, temperature=seed % 3 * 0.7) for seed, one in enumerate(schemas)]
    free = GenerationRequest(PROMPT, sampling(40, temperature=0.9, seed=1), plan)
    alone, values = await run(engine, free), set[str]()
    for first in range(0, SCHEMAS, 24):
        batch = requests[first : first + 24]
        outcomes = await run_all(engine, [*batch, *[free] * (len(batch) // 2)])
        for schema, outcome in zip(schemas[first : first + 24], outcomes, strict=False):
            values.add(json.dumps(checked(schema, outcome)))
            assert "".join(event.text for event in outcome.events) == engine.tokenizer.decode(outcome.tokens)
            assert min(outcome.finish.steering.tokens) > 0
        solo = [*await run_alone(engine, batch[::6]), *[alone] * (len(batch) // 2)]
        for expected, outcome in zip(solo, [*outcomes[: len(batch) : 6], *outcomes[len(batch) :]], strict=True):
            assert (outcome.tokens, outcome.text) == (expected.tokens, expected.text)
    assert len(values) > SCHEMAS * 0.9


async def test_neighbours_and_the_row_itself_are_as_alone(engine: TransformersEngine) -> None:
    plan = await steered_everywhere(engine)
    requests = [
        schema_request(random_schema(seed), plan, seed, temperature=seed % 2 * 0.9, logprobs=seed % 3, max_tokens=80)
        for seed in range(4)
    ]
    free = [GenerationRequest(PROMPT, sampling(40, temperature=seed % 2 * 0.9, seed=seed), plan) for seed in range(4)]
    mixed = [request for pair in zip(requests, free, strict=True) for request in pair]
    alone, batched = await run_alone(engine, mixed), await run_all(engine, mixed)
    for one, other in zip(alone, batched, strict=True):
        assert (one.tokens, one.text, one.finish.reason) == (other.tokens, other.text, other.finish.reason)
        assert "".join(event.text for event in one.events) == one.text


def with_story(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema whose answers have at least 60 tokens before what the other allows."""
    properties = {"story": {"type": "string", "minLength": 60, "maxLength": 70}, "value": schema}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


async def test_a_preempted_answer_goes_on_where_it_was(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Six answers of more than 60 tokens each, in a cache for less than 200 with their prompts."""
    model = long_model()
    async with engine_over(model, hf_byte_tokenizer) as roomy:
        position_bytes = roomy._runner.cache.block_bytes // BLOCK
        most = 150
        requests = [
            schema_request(with_story(random_schema(seed)), SteeringPlan(), seed, temperature=0.8, max_tokens=most)
            for seed in range(6)
        ]
        expected = await run_alone(roomy, requests)
    limits = EngineLimits(cache_bytes=(len(PROMPT) + most + BLOCK) * position_bytes)
    async with engine_over(model, hf_byte_tokenizer, limits) as tight:
        outcomes = await run_at_once(tight, requests)
        assert tight.stats().preemptions > 0
    assert [outcome.tokens for outcome in outcomes] == [outcome.tokens for outcome in expected]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_expressions_and_grammars(engine: TransformersEngine, temperature: float) -> None:
    for grammar, pattern in ((PHONE, PHONE.text), (SUM, r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}")):
        params = SamplingParams(max_tokens=40, temperature=temperature, seed=3, grammar=grammar)
        outcome = await run(engine, GenerationRequest(PROMPT, params))
        assert outcome.finish.reason == "stop"
        assert re.fullmatch(pattern, outcome.text), outcome.text


async def test_it_ends_where_the_grammar_ends_or_is_cut(engine: TransformersEngine) -> None:
    whole = await run(engine, GenerationRequest(PROMPT, SamplingParams(max_tokens=40, grammar=PHONE)))
    assert whole.finish.completion_tokens == len(whole.text), "no token for the end"
    exact = SamplingParams(max_tokens=len(whole.text), grammar=PHONE)
    assert (await run(engine, GenerationRequest(PROMPT, exact))).finish.reason == "stop", "it is complete"
    cut = await run(engine, GenerationRequest(PROMPT, replace(exact, max_tokens=5)))
    assert (cut.finish.reason, cut.text) == ("length", whole.text[:5])
    stopped = await run(engine, GenerationRequest(PROMPT, replace(exact, stop=("-",))))
    assert (stopped.finish.reason, stopped.text) == ("stop", whole.text.partition("-")[0])


async def test_log_probabilities_are_those_of_the_model_without_the_mask(engine: TransformersEngine) -> None:
    params = SamplingParams(max_tokens=8, grammar=PHONE, logprobs=3, repetition_penalty=1.3, logit_bias={65: 50.0})
    outcome = await run(engine, GenerationRequest(PROMPT, params))
    forced = GenerationRequest(PROMPT, SamplingParams(max_tokens=1, logprobs=engine.info.vocab_size))
    (first,) = [event for event in (await run(engine, forced)).events if event.finish is None]
    own = dict(first.top_logprobs)
    assert outcome.text.startswith("+")
    assert outcome.events[0].logprob == pytest.approx(own[ord("+")], abs=1e-5)
    assert [token for token, _ in outcome.events[0].top_logprobs] == [token for token, _ in first.top_logprobs[:3]]


class Kernel:
    """A sampling kernel in torch: notes the logits it gets, and takes the largest."""

    def __init__(self) -> None:
        self.calls: list[torch.Tensor] = []

    def __call__(
        self,
        logits: torch.Tensor,
        _settings: torch.Tensor,
        _states: torch.Tensor,
        ranked: int,
        allowed: torch.Tensor | None,
    ) -> torch.Tensor:
        if allowed is not None:
            bits = np.unpackbits(allowed.numpy().view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
            logits = logits.masked_fill(torch.from_numpy(bits == 0), -torch.inf)
        self.calls.append(logits)
        best = logits.argmax(dim=1, keepdim=True).expand(-1, max(ranked, 1))
        return torch.cat([best, torch.ones(len(logits), 1, dtype=torch.int64)], dim=1)


async def test_the_kernel_gets_masked_rows_apart_and_the_other_rows_as_they_are(engine: TransformersEngine) -> None:
    logits, kernel = torch.randn(3, engine.info.vocab_size).to(torch.bfloat16), Kernel()
    before = logits.clone()
    rows = [row(SamplingParams()) for _ in range(3)]
    rows[1].matcher = await Grammars(engine.tokenizer).matcher(PHONE)
    assert sample(logits, rows, kernel)[1].token_id == ord("+")
    assert torch.equal(logits, before), "a request that is computed again needs them"
    plain, held, masked = kernel.calls
    assert torch.equal(plain, before[[0, 2]])
    assert torch.equal(held, before[[1]])
    assert masked.isfinite().nonzero().tolist() == [[0, ord("+")]]
    logits[1, ord("+")] = 99.0
    sample(logits, rows, kernel)
    assert len(kernel.calls) == 5, "a token that wins and is allowed needs no mask"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kernel", [operations.sample, None], ids=["kernel", "torch"])
@pytest.mark.parametrize("filters", [{}, {"temperature": 1.0, "top_k": 2}], ids=["greedy", "filtered"])
@pytest.mark.parametrize(
    ("allowed_logit", "other"), [(1.0, math.nan), (-math.inf, 0.0)], ids=["a NaN that the mask hides", "none is left"]
)
async def test_a_masked_row_that_is_not_finite_is_reported_and_no_other(
    allowed_logit: float,
    other: float,
    filters: dict[str, Any],
    kernel: SamplingKernel | None,
    engine: TransformersEngine,
) -> None:
    logits = torch.zeros(2, engine.info.vocab_size, dtype=torch.bfloat16)
    logits[0, 7], logits[0, ord("+")], logits[1, ord("+")] = other, allowed_logit, -1.0
    rows = [row(SamplingParams(**filters)) for _ in range(2)]
    for one in rows:
        one.matcher = await Grammars(engine.tokenizer).matcher(PHONE)
    found = sample(logits, rows, kernel)
    assert [one.finite for one in found] == [False, True]
    assert found[1].token_id == ord("+")


@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.7, "min_p": 0.01}, {"logit_bias": {48: 3.0}}])
async def test_the_token_is_that_of_the_masked_logits(engine: TransformersEngine, filters: dict[str, Any]) -> None:
    """Whether or not the winner among all tokens was allowed: by the same noise, filters are of what is allowed."""
    digits = await Grammars(engine.tokenizer).matcher(Grammar("regex", "[0-7]+"))
    logits = torch.randn(60, engine.info.vocab_size, generator=torch.Generator().manual_seed(1))
    logits[:, 48:56] += 2.0
    free = [row(SamplingParams(temperature=seed % 2 * 0.9, seed=seed, **filters)) for seed in range(60)]
    excluded = torch.ones_like(logits, dtype=torch.bool)
    excluded[:, 48:56] = False
    expected = sample(logits.masked_fill(excluded, -torch.inf), free)
    held = [row(SamplingParams(temperature=seed % 2 * 0.9, seed=seed, **filters)) for seed in range(60)]
    for one in held:
        one.matcher = digits
    found = sample(logits, held)
    assert [one.token_id for one in found] == [one.token_id for one in expected]
    winners = [one.token_id for one in sample(logits, free)]
    assert 0 < sum(48 <= token < 56 for token in winners) < 60


class Excluding:
    """A grammar that allows some tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = frozenset(tokens)
        self.masks = 0

    def first_allowed(self, tokens: Iterable[int]) -> int | None:
        return next((place for place, token in enumerate(tokens) if token in self.tokens), None)

    def fill(self, mask: NDArray[np.uint32]) -> None:
        self.masks += 1
        for token in self.tokens:
            mask[token // 32] |= np.uint32(1 << token % 32)


@pytest.mark.usefixtures("kernels")
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spread=st.floats(0.1, 20.0),
    share=st.sampled_from([0.002, 0.1, 0.5, 0.98]),
    filters=FILTERS,
)
def test_the_kernel_ranks_as_if_the_others_were_masked(
    seed: int, spread: float, share: float, filters: dict[str, Any]
) -> None:
    """Whichever tokens a grammar excludes and whatever the filters are: a token that needs no mask is that of the masked logits."""
    draw = torch.Generator().manual_seed(seed)
    logits = (torch.randn(24, 1003, generator=draw) * spread).to(torch.bfloat16)
    open_to = torch.rand(24, 1003, generator=draw) < share
    open_to[:, 7] = True
    rows = [
        row(SamplingParams(seed=seed + number, **{**filters, "temperature": number % 3 * 0.7})) for number in range(24)
    ]
    expected = sample(logits.masked_fill(~open_to, -torch.inf), rows, operations.sample)
    grammars: list[Any] = [Excluding(own.nonzero()[:, 0].tolist()) for own in open_to]
    for request, grammar in zip(rows, grammars, strict=True):
        request.matcher = grammar
    found = sample(logits, rows, operations.sample)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.token_id != other.token_id:
            masked = logits[number].masked_fill(~open_to[number], -torch.inf)
            asked = {**filters, "temperature": number % 3 * 0.7}
            assert any(nearly_excluded(masked, asked, each.token_id) for each in (one, other)), (number, one, other)
    assert share < 0.5 or sum(grammar.masks for grammar in grammars) < 24


async def test_rows_that_are_masked_in_another_order_keep_their_logits(engine: TransformersEngine) -> None:
    """The second is masked at once, since it has a filter; the first after its winner was not allowed."""
    digits = await Grammars(engine.tokenizer).matcher(Grammar("regex", "[0-7]+"))
    logits = torch.zeros(2, engine.info.vocab_size)
    logits[:, ord("a")], logits[0, ord("1")], logits[1, ord("2")] = 9.0, 8.0, 8.0
    rows = [row(SamplingParams(temperature=0.0)), row(SamplingParams(temperature=0.1, top_k=1))]
    for one in rows:
        one.matcher = digits
    assert [one.token_id for one in sample(logits, rows)] == [ord("1"), ord("2")]


async def test_every_end_of_the_model_is_allowed_where_the_answer_may_end(engine: TransformersEngine) -> None:
    tokenizer = engine.tokenizer
    (eos,) = tokenizer.eos_ids
    second = eos + 1
    tokenizer.eos_ids = frozenset({eos, second})
    matcher = await Grammars(tokenizer).matcher(Grammar("regex", "ab*"))

    assert set(_next(matcher, engine)) == {ord("a")}
    assert not matcher.advance(ord("a"))
    assert set(_next(matcher, engine)) == {ord("b"), eos, second}
    assert matcher.advance(second), "nothing may follow"


HOSTILE: list[tuple[Grammar, str]] = [
    (Grammar("json_schema", '{"$ref": "#"}'), "response_format"),
    (Grammar("json_schema", '{"$ref": "http://127.0.0.1:1/schema.json"}'), "retriev"),
    (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
    (Grammar("json_schema", '{"type": "string", "pattern": "(?=a)b"}'), "look-around"),
    (Grammar("json_schema", '{"type": "word"}'), "word"),
    (Grammar("regex", "(a"), "unclosed group"),
    (Grammar("regex", r"(a)\1"), "backreferences"),
    (Grammar("lark", "start: word"), "word"),
    (Grammar("lark", "start: start"), "guided_grammar"),
]


@pytest.mark.parametrize(("grammar", "says"), HOSTILE)
async def test_what_cannot_be_used_is_refused_before_it_runs(
    engine: TransformersEngine, grammar: Grammar, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await engine.check_grammar(grammar)
    assert refused.value.param == grammar.param
    assert says in f"{refused.value.message} {refused.value.param}"
    assert len(refused.value.message) < 400
    assert engine.stats().steps == 0


DEMANDING = [
    Grammar("regex", "((a{1,1000}){1,1000}){1,1000}"),
    Grammar("regex", "(.*a.{20}|.*b.{20}|.*c.{20})"),
    Grammar("json_schema", '{"type": "string", "pattern": "^((a+)+)+$", "maxLength": 40}'),
    Grammar("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}'),
    Grammar("lark", 'start: start start | "a"'),
    Grammar("lark", 'start: a*\na: b*\nb: "x"*'),
]


@pytest.mark.parametrize("grammar", DEMANDING)
async def test_demanding_grammars_are_as_fast_as_the_bounds_demand(
    engine: TransformersEngine, grammar: Grammar
) -> None:
    ended, same = await _beside_another(engine, grammar)
    assert isinstance(ended, Outcome)
    assert same


async def test_a_grammar_that_takes_too_long_ends_its_own_answer(engine: TransformersEngine) -> None:
    engine._grammars = Grammars(engine.tokenizer, seconds=-10.0)
    ended, same = await _beside_another(engine, Grammar("regex", "a*"))
    assert isinstance(ended, LimitExceeded)
    assert same


async def _beside_another(engine: TransformersEngine, grammar: Grammar) -> tuple[object, bool]:
    """How an answer under a grammar ends, and whether its neighbour is as alone."""
    neighbour = GenerationRequest(PROMPT, sampling(80, temperature=1.0, seed=4))
    alone = await run(engine, neighbour)
    long = GenerationRequest(PROMPT, SamplingParams(max_tokens=200, temperature=1.0, grammar=grammar))
    ended, beside = await asyncio.gather(run(engine, long), run(engine, neighbour), return_exceptions=True)
    assert isinstance(beside, Outcome)
    return ended, beside.tokens == alone.tokens


async def test_a_token_that_may_not_follow_is_an_error(engine: TransformersEngine) -> None:
    matcher = await Grammars(engine.tokenizer).matcher(Grammar("regex", "a*"))
    with pytest.raises(LimitExceeded, match="cannot go on"):
        matcher.advance(ord("b"))


async def test_an_answer_whose_masks_take_too_long_ends(engine: TransformersEngine) -> None:
    matcher = await Grammars(engine.tokenizer).matcher(Grammar("regex", "a*"))
    matcher._left = -1.0
    with pytest.raises(LimitExceeded, match="2 ms"):
        matcher.advance(ord("a"))


def test_a_token_formats_no_text_of_an_error() -> None:
    class Endless:
        """A matcher of llguidance that takes every token and has no error to format."""

        def is_error(self) -> bool:
            return False

        def is_stopped(self) -> bool:
            return False

        def consume_token(self, _token: int) -> bool:
            return True

    inner: Any = Endless()
    assert not Matcher(inner, eos=0, eos_ids=(0,), seconds=1.0).advance(1)


async def test_grammars_are_compiled_once_and_copied(engine: TransformersEngine) -> None:
    kept = Grammars(engine.tokenizer)
    one, other = [await kept.matcher(PHONE) for _ in range(2)]
    one.advance(ord("+"))
    assert _next(one, engine) != _next(other, engine)
    assert _next(other, engine) == _next(await kept.matcher(PHONE), engine)
    assert len(kept._compiled) == 1


def _next(matcher: Matcher, engine: TransformersEngine) -> list[int]:
    """Returns the tokens that may follow."""
    found = allowed([matcher], torch.zeros(1, engine.info.vocab_size)).isfinite()[0].nonzero()[:, 0].tolist()
    assert [token for token in range(engine.info.vocab_size) if matcher.first_allowed([token]) == 0] == found
    return [int(token) for token in found]
