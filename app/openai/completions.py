"""POST /v1/completions: prepares, runs and answers text completions, with echo and log-probabilities of the prompt."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from app.http.sse import Event
from app.openai.chat import DONE
from app.openai.generation import OpenAIWork, events, run
from app.openai.generation import prepare as prepare_generation
from app.openai.responses import envelope, finish_reason, flags_extension, response_id, steering_extension, usage_of
from app.openai.schemas import CompletionRequest, inputs_of
from app.services.context import Context
from app.services.reading.responses import ACTIVATION_BYTES
from steering.engine.api import Finish, SteeringReport, TokenEvent, Tokenizer
from steering.workflows.generate import Answer, assemble
from steering.workflows.reading.prompt_logprobs import ScoredToken, prompt_logprobs

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of this route."""


@dataclass(frozen=True, slots=True, eq=False)
class CompletionWork:
    """A prepared completion. generates: False when only the prompt is scored (`max_tokens: 0`)."""

    work: OpenAIWork
    body: CompletionRequest
    generates: bool


async def prepare(context: Context, body: CompletionRequest) -> CompletionWork:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    prompts = inputs_of(body.prompt)
    work = await prepare_generation(context, body, prompts, limit, body.logprobs)
    if body.echo and body.logprobs is not None:
        tokens = sum(len(one.request.prompt) for one in work.generations)
        context.admission.reserve(tokens * context.engine.info.vocab_size * ACTIVATION_BYTES)
    return CompletionWork(work, body, generates=limit > 0)


async def answer(prepared: CompletionWork) -> dict[str, Any]:
    """Runs the request and builds the response."""
    work, body = prepared.work, prepared.body
    scored: Sequence[Sequence[ScoredToken]] = [()] * len(work.generations)
    if body.echo and body.logprobs is not None:
        ids = [tuple(_ids(work, index)) for index in range(len(work.generations))]
        scored = await prompt_logprobs(work.context.engine, ids, work.plan, body.logprobs)
    answers = await run(work) if prepared.generates else tuple(_nothing(work, i) for i in range(len(work.generations)))
    each = len(answers) // len(work.generations)
    return {
        **envelope(work, response_id("cmpl"), "text_completion"),
        "choices": [
            _choice(prepared, index, one, index // each, scored[index // each]) for index, one in enumerate(answers)
        ],
        "usage": usage_of(answers, len(work.generations)),
        **steering_extension(work, answers, recorded=prepared.generates),
    }


def _ids(work: OpenAIWork, prompt: int) -> tuple[int, ...]:
    ids = work.generations[prompt].request.prompt
    assert not isinstance(ids, str)
    return tuple(one for one in ids if isinstance(one, int))


def _nothing(work: OpenAIWork, prompt: int) -> Answer:
    """Returns the answer of a request that generates nothing."""
    return Answer("", (), Finish("length", len(_ids(work, prompt)), 0, 0, SteeringReport()), ())


def _choice(
    prepared: CompletionWork, index: int, one: Answer, prompt: int, scored: Sequence[ScoredToken]
) -> dict[str, Any]:
    work, body = prepared.work, prepared.body
    tokenizer = work.context.engine.tokenizer
    echoed = ""
    if body.echo:
        given = inputs_of(body.prompt)[prompt]
        echoed = given if isinstance(given, str) else tokenizer.decode(given)
    logprobs = None
    if body.logprobs is not None:
        generated = [ScoredToken(event.token_id, event.logprob, event.top_logprobs) for event in one.events]
        logprobs = _logprobs([*scored, *generated], tokenizer, body.logprobs, echoed + one.text)
    choice = {"index": index, "text": echoed + one.text, "logprobs": logprobs}
    return {**choice, "finish_reason": finish_reason(one.finish), **flags_extension(one)}


def _logprobs(
    tokens: Sequence[ScoredToken], tokenizer: Tokenizer, top: int, whole: str, offset: int = 0
) -> dict[str, Any]:
    """Returns the four parallel lists of the legacy format. `whole` is the text in which the offsets count."""
    texts = [tokenizer.token_text(token.token_id) for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(*pair, tokenizer) for pair in zip(tokens, texts, strict=True)] if top else None,
        "text_offset": _offsets(texts, whole, offset),
    }


def _offsets(texts: Sequence[str], whole: str, start: int) -> list[int]:
    """Returns where each token begins in a text. Control tokens are not in it, and take no characters."""
    found, position = [], 0
    for text in texts:
        found.append(start + position)
        position += len(text) if whole.startswith(text, position) else 0
    return found


def _top(token: ScoredToken, text: str, tokenizer: Tokenizer) -> dict[str, float] | None:
    """Returns the alternatives by text. The chosen token is among them, as in OpenAI's API."""
    if token.logprob is None:
        return None
    found = {tokenizer.token_text(other): logprob for other, logprob in reversed(token.top)}
    if all(other != token.token_id for other, _ in token.top):
        found.setdefault(text, token.logprob)
    return found


async def chunks(prepared: CompletionWork, include_usage: bool) -> AsyncGenerator[Event, None]:
    """Yields text chunks and finish chunks of all choices, the usage if requested, and [DONE]."""
    work = prepared.work
    head = envelope(work, response_id("cmpl"), "text_completion")
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    count = len(work.generations) * work.n
    observed: list[list[TokenEvent]] = [[] for _ in range(count)]
    offsets = [0] * count
    finished = 0
    async with aclosing(events(work)) as arriving:
        async for index, event in arriving:
            observed[index].append(event)
            finished += event.finish is not None
            last = event.finish is not None and finished == count and not include_usage
            extension = steering_extension(work, [assemble(one) for one in observed]) if last else {}
            choice = _chunk(prepared, index, event, offsets)
            if event.finish is not None:
                choice |= flags_extension(assemble(observed[index]))
            if event.text or event.finish is not None or choice["logprobs"] is not None:
                yield Event({**head, "choices": [choice], **usage, **extension})
    if include_usage:
        answers = [assemble(one) for one in observed]
        total = usage_of(answers, len(work.generations))
        yield Event({**head, "choices": [], "usage": total, **steering_extension(work, answers)})
    yield DONE


def _chunk(prepared: CompletionWork, index: int, event: TokenEvent, offsets: list[int]) -> dict[str, Any]:
    logprobs, top = None, prepared.body.logprobs
    if top is not None and event.token_id >= 0:
        token = ScoredToken(event.token_id, event.logprob, event.top_logprobs)
        logprobs = _logprobs([token], prepared.work.context.engine.tokenizer, top, event.text, offsets[index])
    offsets[index] += len(event.text)
    reason = None if event.finish is None else finish_reason(event.finish)
    return {"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": reason}
