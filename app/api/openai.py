"""The OpenAI-compatible routes, for unmodified OpenAI clients: chat, completions, embeddings, models."""

import base64
import secrets
import struct
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.api.context import AdmittedDep, Context, ContextDep
from app.api.generate import NO_FLAGS, Generation, applied_steering, usage_of
from app.api.openai_schemas import ChatRequest, CompletionRequest, EmbeddingRequest, inputs_of
from app.api.openai_schemas import GenerationRequest as OpenAIGeneration
from app.api.prompts import check_activations, check_sampling, encode_prompts, sampling_params, tokenize
from app.core.admission import check_limit
from app.core.answers import ALTERNATIVE_BYTES, SCORE_BYTES, json_in_thread
from app.core.errors import body_of
from app.core.events import Event, event_stream
from app.core.metrics import TokenClock
from app.core.requests import ApiRoute, needs
from steering.engine.api import Finish, Prompt, TokenEvent, Tokenizer
from steering.errors import InvalidRequest, ModelNotFound, ProfileNotFound
from steering.injection.dose import SteeringReport
from steering.layer_indices import layer_index
from steering.pairs import ChatMessage
from steering.plan.types import SteeringPlan
from steering.schemas.resources import ProfileAnswer
from steering.schemas.steering import ProfileSteering, Steering
from steering.store.records import ProfileName
from steering.threads import run_in_thread
from steering.workflows.generate import Answer, assemble, choices, interleaved, stream_events
from steering.workflows.logprobs import ScoredToken, embed, logit_bytes, prompt_logprobs

_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}, "application/json": {}}}}
openai_stream = partial(event_stream, on_failure=lambda error: (Event(body_of(error)), Event("[DONE]")))
"""Returns the response of an OpenAI streaming request; failures are reported as an error object, then [DONE]."""
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of this route."""

router = APIRouter(route_class=ApiRoute, tags=["openai"])


@router.get("/v1/models", openapi_extra=needs("generate"))
async def models(context: ContextDep) -> dict[str, Any]:
    """Lists the loaded model and each profile as `<model>@<profile>`."""
    name = context.engine.info.name
    profiles = await context.store.profiles.names()
    return {
        "object": "list",
        "data": [_item(name, None), *(_item(f"{name}@{profile.name}", profile) for profile in profiles)],
    }


@router.get("/v1/models/{model:path}", openapi_extra=needs("generate"))
async def model(model: str, context: ContextDep) -> dict[str, Any]:
    """Describes one model."""
    profile = profile_in(context, model)
    return _item(model, None if profile is None else await _profile(context, model, profile))


@router.post("/v1/chat/completions", openapi_extra=needs("generate"), response_class=Response, responses=_STREAM)
async def chat_completions(body: ChatRequest, context: AdmittedDep) -> Response:
    """Answers a conversation, as OpenAI's chat completions do; `steering` in and out."""
    work = await _prepare_chat(context, body)
    if body.stream:
        return await openai_stream(context.state, _chat_chunks(work, body))
    return await _chat_answer(work)


@router.post("/v1/completions", openapi_extra=needs("generate"), response_class=Response, responses=_STREAM)
async def text_completions(body: CompletionRequest, context: AdmittedDep) -> Response:
    """Continues texts, as OpenAI's completions do; `echo` with `logprobs` scores the prompt."""
    work = await _prepare_completion(context, body)
    if body.stream:
        return await openai_stream(context.state, _completion_chunks(work, body))
    return await _completion_answer(work, body)


@router.post("/v1/embeddings", openapi_extra=needs("generate"), response_class=Response, responses=_STREAM)
async def create_embeddings(body: EmbeddingRequest, context: AdmittedDep) -> Response:
    """Returns one pooled activation of the chosen layer for each input."""
    engine, texts = context.engine, inputs_of(body.input)
    check_limit(len(texts), context.settings.max_texts, "inputs", "input")
    profile_in(context, body.model)  # raises where the model is another; a profile changes nothing here
    layer = layer_index(body.layer, engine.info.layer_count, param="layer")
    ids = await encode_prompts(engine, texts, "input")
    tokens = sum(map(len, ids))
    check_activations(engine, context.settings, len(texts), 1, "activations (inputs x d_model)", "input")
    context.admission.reserve(len(texts) * engine.info.d_model * SCORE_BYTES)
    context.charge_tokens(tokens)
    found = await embed(engine, ids, layer, body.position)

    def build() -> dict[str, Any]:
        described = [
            {"object": "embedding", "index": index, "embedding": _encoded(values, body.encoding_format)}
            for index, values in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": body.model, "data": described, "usage": usage, "layer": layer}

    return await json_in_thread(build)


def profile_in(context: Context, model: str) -> str | None:
    """Returns the profile that a model name names, None for the plain model. Raises ModelNotFound for another model."""
    loaded = context.engine.info.name
    if model == loaded:
        return None
    profile = model.removeprefix(f"{loaded}@")
    if profile in ("", model):
        raise ModelNotFound(
            f"model {model[:120]!r} is not served; served are {loaded!r} and its profiles", param="model"
        )
    return profile


async def _profile(context: Context, model: str, name: str) -> ProfileAnswer:
    try:
        return await context.profile(name)
    except (ProfileNotFound, InvalidRequest) as error:
        raise ModelNotFound(f"model {model[:120]!r} is not served: {error.message}", param="model") from None


async def steering_of(context: Context, model: str, steering: Steering | None) -> Steering | None:
    """Returns the steering of a request: a profile model applies its profile before the request's interventions."""
    profile = profile_in(context, model)
    if profile is None:
        return steering
    if isinstance(steering, ProfileSteering):
        raise InvalidRequest(
            "the model already names a profile; 'steering' may only list interventions", param="steering"
        )
    await _profile(context, model, profile)
    return ProfileSteering(profile=profile, interventions=tuple(steering or ()))


def _item(name: str, profile: ProfileAnswer | ProfileName | None) -> dict[str, Any]:
    item: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "steering-server"}
    if profile is not None:
        item |= {"profile": profile.name, "namespace": profile.namespace, "description": profile.description}
    return item


@dataclass(frozen=True, slots=True, eq=False)
class OpenAIWork:
    """The generations of one request, one for each prompt, and what the response needs.

    model: the model as the client names it.
    n: how many choices each prompt has.
    created: when the request arrived, as Unix time.
    """

    context: Context
    model: str
    plan: SteeringPlan
    generations: tuple[Generation, ...]
    n: int
    created: int = field(default_factory=lambda: int(time.time()))


async def _prepare(
    context: Context, body: OpenAIGeneration, prompts: Sequence[Prompt], max_tokens: int | None, logprobs: int | None
) -> OpenAIWork:
    """Resolves the request. Everything that can be refused is refused here, and by `admit`.

    Without max_tokens an answer has what fits the context, up to `chat_max_tokens` and half of what its key has in a minute.
    """
    settings, fields, n = context.settings, body.sampling(), body.n or 1
    check_sampling(settings, fields, n)
    check_limit(logprobs or 0, settings.max_top_logprobs, "alternatives", "logprobs")
    check_limit(len(prompts), settings.max_prompts, "prompts", "prompt")
    plan = await context.plan(await steering_of(context, body.model, body.steering))
    default, minute = settings.chat_max_tokens, context.key.limits.tokens_per_minute
    if minute is not None:  # all that an answer may have counts
        default = min(default, max(1, minute // (2 * n)))
    generations = []
    for prompt in prompts:
        tokenized = await tokenize(context.engine, prompt, max_tokens, plan, default)
        sampling = sampling_params(fields, tokenized.max_tokens, logprobs)
        request = context.request(tokenized.token_ids, sampling, tokenized.plan)
        generations.append(Generation(context, request, n, tokens=logprobs is not None))
    if logprobs is not None:
        listed = n * sum(one.request.sampling.max_tokens for one in generations) * (1 + logprobs)
        context.admission.reserve(listed * ALTERNATIVE_BYTES)
    return OpenAIWork(context, body.model, plan, tuple(generations), n)


def _admit(work: OpenAIWork) -> OpenAIWork:
    """Takes the rows of all choices and counts the tokens of all prompts at once. Raises what `Context.admit` raises."""
    work.context.admit(len(work.generations) * work.n, sum(one.cost for one in work.generations))
    return work


async def _events(work: OpenAIWork) -> AsyncGenerator[tuple[int, TokenEvent], None]:
    """Yields (choice, event) as they arrive; choices are numbered over all prompts."""
    requests = [one for generation in work.generations for one in choices(generation.request, generation.n)]
    clock = TokenClock(work.context.state.metrics)
    streams = [stream_events(work.context.engine, request) for request in requests]
    async with aclosing(interleaved(streams)) as arriving:
        async for choice, event in arriving:
            clock.observe(choice)
            yield choice, event


def _observed(work: OpenAIWork) -> list[list[TokenEvent]]:
    """Returns an empty list for the events of each choice."""
    return [[] for _ in range(len(work.generations) * work.n)]


async def _run(work: OpenAIWork) -> list[Answer]:
    """Returns the answers of all choices when the last one has ended."""
    observed = _observed(work)
    async with aclosing(_events(work)) as arriving:
        async for choice, event in arriving:
            observed[choice].append(event)
    return list(map(assemble, observed))


async def _stream(
    work: OpenAIWork,
    head: dict[str, Any],
    describe: Callable[[int, TokenEvent], list[dict[str, Any]]],
    *,
    include_usage: bool,
) -> AsyncGenerator[Event, None]:
    """Yields a chunk for each delta that `describe` lists of (choice, event), the usage if requested, and [DONE].

    The last delta of a choice says why it ended. The last chunk before [DONE] has what `_steering_extension` returns.
    """
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    observed = _observed(work)
    finished = 0
    async with aclosing(_events(work)) as arriving:
        async for index, event in arriving:
            observed[index].append(event)
            deltas = describe(index, event)
            extension = {}
            if event.finish is not None:
                finished += 1
                deltas[-1] |= _ending(assemble(observed[index]))
                if finished == len(observed) and not include_usage:
                    answers = list(map(assemble, observed))
                    extension = await run_in_thread(_steering_extension, work, answers)
            for delta in deltas:
                yield Event({**head, "choices": [delta], **usage, **(extension if delta is deltas[-1] else {})})
    if include_usage:
        yield Event(await run_in_thread(lambda: _response(work, head, [], list(map(assemble, observed)))))
    yield Event("[DONE]")


def _envelope(work: OpenAIWork, prefix: str, kind: str) -> dict[str, Any]:
    """Returns the fields that every response and chunk starts with. The id begins with `prefix`."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": work.created,
        "model": work.model,
        "system_fingerprint": work.context.engine.info.fingerprint[:16],
    }


def _response(
    work: OpenAIWork, head: dict[str, Any], described: Sequence[dict[str, Any]], answers: Sequence[Answer]
) -> dict[str, Any]:
    """Returns a response with the choices described, and the usage and steering of all answers."""
    usage = _usage_of(work, answers)
    return {**head, "choices": described, "usage": usage, **_steering_extension(work, answers)}


def _ending(answer: Answer) -> dict[str, Any]:
    """Returns why an answer ended, in OpenAI's terms, and `flags`: the monitors that were raised, where some were."""
    reason = answer.finish.reason
    flags = [one.model_dump(mode="json", exclude_none=True) for one in NO_FLAGS.raised(answer) or ()]
    return {"finish_reason": "content_filter" if reason == "monitor" else reason, **({"flags": flags} if flags else {})}


def _usage_of(work: OpenAIWork, answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts tokens, in OpenAI's form. There is one answer to each prompt where only the prompts were scored."""
    usage = usage_of(answers, len(answers) // len(work.generations)).model_dump()
    cached = usage.pop("cached_tokens")
    return {**usage, "prompt_tokens_details": {"cached_tokens": cached}}


def _steering_extension(work: OpenAIWork, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns `seed` and `steering`, which OpenAI's API does not have; clients keep them as extra fields.

    The replay record is of the first prompt; there is none where nothing was generated that could be replayed.
    """
    reports = [answer.finish.steering for answer in answers]
    work.context.state.metrics.observe_dose(reports)
    first = work.generations[0]
    sampling = first.request.sampling
    record = first.record if sampling.max_tokens else None
    applied = applied_steering(work.plan, reports, record, first.warnings)
    return {"seed": sampling.seed, "steering": applied.model_dump(mode="json", exclude_none=True)}


async def _prepare_chat(context: Context, body: ChatRequest) -> OpenAIWork:
    """Resolves the request and admits it. Without a limit an answer ends by itself, or at `chat_max_tokens`."""
    check_limit(len(body.messages), context.settings.max_messages, "messages", "messages")
    messages = tuple(ChatMessage("system" if one.role == "developer" else one.role, one.text) for one in body.messages)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _admit(await _prepare(context, body, [messages], limit, logprobs))


async def _chat_answer(work: OpenAIWork) -> Response:
    """Runs the request and builds the response."""
    answers = await _run(work)

    def build() -> dict[str, Any]:
        described = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "logprobs": _chat_logprobs(work, one.events),
                **_ending(one),
            }
            for index, one in enumerate(answers)
        ]
        return _response(work, _envelope(work, "chatcmpl", "chat.completion"), described, answers)

    return await json_in_thread(build)


def _chat_chunks(work: OpenAIWork, body: ChatRequest) -> AsyncGenerator[Event, None]:
    """Yields a role chunk for each choice, text chunks, finish chunks, the usage if requested, and [DONE]."""
    begun: set[int] = set()

    def describe(index: int, event: TokenEvent) -> list[dict[str, Any]]:
        found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
        if index not in begun:
            begun.add(index)
            found.append(({"role": "assistant", "content": "", "refusal": None}, None))
        if event.text or (event.token_id >= 0 and work.generations[0].tokens):
            found.append(({"content": event.text}, _chat_logprobs(work, [event])))
        if event.finish is not None:
            found.append(({}, None))
        return [{"index": index, "delta": one, "logprobs": log, "finish_reason": None} for one, log in found]

    return _stream(
        work, _envelope(work, "chatcmpl", "chat.completion.chunk"), describe, include_usage=body.include_usage
    )


def _chat_logprobs(work: OpenAIWork, events: Sequence[TokenEvent]) -> dict[str, Any] | None:
    """Returns the log-probabilities of tokens, None where they were not requested."""
    if not work.generations[0].tokens:
        return None
    tokenizer = work.context.engine.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", errors="replace"))}

    content = [
        {
            **entry(event.token_id, event.logprob),
            "top_logprobs": [entry(token, logprob) for token, logprob in event.top_logprobs],
        }
        for event in events
        if event.token_id >= 0 and event.logprob is not None
    ]
    return {"content": content, "refusal": None}


async def _prepare_completion(context: Context, body: CompletionRequest) -> OpenAIWork:
    """Resolves the request and admits it. Everything that can be refused is refused here, before any device work."""
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    work = await _prepare(context, body, inputs_of(body.prompt), limit, body.logprobs)
    if body.echo and body.logprobs is not None:
        prompts = _prompts(work)
        listed = sum(map(len, prompts)) * work.n * (1 + body.logprobs) * ALTERNATIVE_BYTES
        context.admission.reserve(logit_bytes(prompts, context.engine.info.vocab_size) + listed)
    return _admit(work)


def _prompts(work: OpenAIWork) -> list[tuple[int, ...]]:
    return [tuple(token for token in one.request.prompt if isinstance(token, int)) for one in work.generations]


async def _completion_answer(work: OpenAIWork, body: CompletionRequest) -> Response:
    """Runs the request and builds the response. With `max_tokens: 0` only the prompts are scored."""
    prompts = _prompts(work)
    scored: Sequence[Sequence[ScoredToken]] = [()] * len(prompts)
    if body.echo and body.logprobs is not None:
        scored = await prompt_logprobs(work.context.engine, prompts, work.plan, body.logprobs)
    if body.max_tokens == 0:
        answers = [Answer("", (), Finish("length", len(one), 0, 0, SteeringReport()), ()) for one in prompts]
    else:
        answers = await _run(work)
    each = len(answers) // len(prompts)

    def build() -> dict[str, Any]:
        choices = [_choice(work, body, i, one, i // each, scored[i // each]) for i, one in enumerate(answers)]
        return _response(work, _envelope(work, "cmpl", "text_completion"), choices, answers)

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
        logprobs = _completion_logprobs([*scored, *map(_scored, one.events)], tokenizer, body.logprobs, text)
    return {"index": index, "text": text, "logprobs": logprobs, **_ending(one)}


def _scored(event: TokenEvent) -> ScoredToken:
    return ScoredToken(event.token_id, event.logprob, event.top_logprobs)


def _completion_logprobs(
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


def _completion_chunks(work: OpenAIWork, body: CompletionRequest) -> AsyncGenerator[Event, None]:
    """Yields text chunks and finish chunks of all choices, the usage if requested, and [DONE]."""
    offsets: Counter[int] = Counter()
    tokenizer = work.context.engine.tokenizer

    def describe(index: int, event: TokenEvent) -> list[dict[str, Any]]:
        logprobs = None
        if body.logprobs is not None and event.token_id >= 0:
            logprobs = _completion_logprobs([_scored(event)], tokenizer, body.logprobs, event.text, offsets[index])
        offsets[index] += len(event.text)
        if not event.text and event.finish is None and logprobs is None:
            return []
        return [{"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None}]

    return _stream(work, _envelope(work, "cmpl", "text_completion"), describe, include_usage=body.include_usage)


def _encoded(values: Sequence[float], form: str) -> list[float] | str:
    """Returns numbers, or little-endian float32 in base64 as the openai client requests by default."""
    if form == "float":
        return list(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
