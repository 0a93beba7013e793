"""POST /v1/completions: prepares, runs and answers text completions, with echo and log-probabilities of the prompt."""

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.responses import Response

from app.http.answers import json_in_thread
from app.http.sse import Event
from app.openai.generation import OpenAIWork, admit, ending, envelope, response, run, stream
from app.openai.generation import prepare as prepare_generation
from app.openai.schemas import CompletionRequest, inputs_of
from app.services.context import Context
from app.services.reading.responses import ALTERNATIVE_BYTES
from steering.engine.api import Finish, SteeringReport, TokenEvent, Tokenizer
from steering.workflows.generate import Answer
from steering.workflows.reading.prompt_logprobs import ScoredToken, logit_bytes, prompt_logprobs

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of this route."""


async def prepare(context: Context, body: CompletionRequest) -> OpenAIWork:
    """Resolves the request and admits it. Everything that can be refused is refused here, before any device work."""
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    work = await prepare_generation(context, body, inputs_of(body.prompt), limit, body.logprobs)
    if body.echo and body.logprobs is not None:
        prompts = _prompts(work)
        listed = sum(map(len, prompts)) * work.n * (1 + body.logprobs) * ALTERNATIVE_BYTES
        context.admission.reserve(logit_bytes(prompts, context.engine.info.vocab_size) + listed)
    return admit(work)


def _prompts(work: OpenAIWork) -> list[tuple[int, ...]]:
    return [tuple(token for token in one.request.prompt if isinstance(token, int)) for one in work.generations]


async def answer(work: OpenAIWork, body: CompletionRequest) -> Response:
    """Runs the request and builds the response. With `max_tokens: 0` only the prompts are scored."""
    prompts = _prompts(work)
    scored: Sequence[Sequence[ScoredToken]] = [()] * len(prompts)
    if body.echo and body.logprobs is not None:
        scored = await prompt_logprobs(work.context.engine, prompts, work.plan, body.logprobs)
    if body.max_tokens == 0:
        answers = [Answer("", (), Finish("length", len(one), 0, 0, SteeringReport()), ()) for one in prompts]
    else:
        answers = await run(work)
    each = len(answers) // len(prompts)

    def build() -> dict[str, Any]:
        choices = [_choice(work, body, i, one, i // each, scored[i // each]) for i, one in enumerate(answers)]
        return response(work, envelope(work, "cmpl", "text_completion"), choices, answers)

    return await json_in_thread(build)


def _choice(
    work: OpenAIWork, body: CompletionRequest, index: int, one: Answer, prompt: int, scored: Sequence[ScoredToken]
) -> dict[str, Any]:
    tokenizer = work.context.engine.tokenizer
    text, logprobs = one.text, None
    if body.echo:
        given = inputs_of(body.prompt)[prompt]
        text = (given if isinstance(given, str) else tokenizer.decode(given)) + text
    if body.logprobs is not None:
        logprobs = _logprobs([*scored, *map(_scored, one.events)], tokenizer, body.logprobs, text)
    return {"index": index, "text": text, "logprobs": logprobs, **ending(one)}


def _scored(event: TokenEvent) -> ScoredToken:
    return ScoredToken(event.token_id, event.logprob, event.top_logprobs)


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


def chunks(work: OpenAIWork, body: CompletionRequest) -> AsyncGenerator[Event, None]:
    """Yields text chunks and finish chunks of all choices, the usage if requested, and [DONE]."""
    offsets: Counter[int] = Counter()
    tokenizer = work.context.engine.tokenizer

    def describe(index: int, event: TokenEvent) -> list[dict[str, Any]]:
        logprobs = None
        if body.logprobs is not None and event.token_id >= 0:
            logprobs = _logprobs([_scored(event)], tokenizer, body.logprobs, event.text, offsets[index])
        offsets[index] += len(event.text)
        if not event.text and event.finish is None and logprobs is None:
            return []
        return [{"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None}]

    return stream(work, envelope(work, "cmpl", "text_completion"), describe, include_usage=body.include_usage)
