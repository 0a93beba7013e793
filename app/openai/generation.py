"""Prepares and runs the generations of one OpenAI request, several prompts and several choices of each, and builds the parts
that the responses of both routes share."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from app.http.sse import Event
from app.metrics import TokenClock
from app.openai.models import steering_of
from app.openai.schemas import GenerationRequest as OpenAIGeneration
from app.services.context import Context
from app.services.generation.flags import NO_FLAGS
from app.services.generation.generate import Generation
from app.services.generation.responses import applied_steering, usage_of
from app.services.inputs import sampling_params, tokenize
from app.services.limits import check_limit, check_sampling
from app.services.reading.responses import ALTERNATIVE_BYTES
from steering.engine.api import Prompt, TokenEvent
from steering.plan.types import SteeringPlan
from steering.threads import run_in_thread
from steering.workflows.generate import Answer, assemble, choices, interleaved, stream_events


@dataclass(frozen=True, slots=True, eq=False)
class OpenAIWork:
    """The generations of one request, one for each prompt, and what the response needs. model: as the client names it.

    n: choices of each prompt. created: Unix time.
    """

    context: Context
    model: str
    plan: SteeringPlan
    generations: tuple[Generation, ...]
    n: int
    created: int = field(default_factory=lambda: int(time.time()))


async def prepare(
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


def admit(work: OpenAIWork) -> OpenAIWork:
    """Takes the rows of all choices and counts the tokens of all prompts at once. Raises what `Context.admit` raises."""
    work.context.admit(len(work.generations) * work.n, sum(one.cost for one in work.generations))
    return work


async def events(work: OpenAIWork) -> AsyncGenerator[tuple[int, TokenEvent], None]:
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


async def run(work: OpenAIWork) -> list[Answer]:
    """Returns the answers of all choices when the last one has ended."""
    observed = _observed(work)
    async with aclosing(events(work)) as arriving:
        async for choice, event in arriving:
            observed[choice].append(event)
    return list(map(assemble, observed))


async def stream(
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
    async with aclosing(events(work)) as arriving:
        async for index, event in arriving:
            observed[index].append(event)
            deltas = describe(index, event)
            extension = {}
            if event.finish is not None:
                finished += 1
                deltas[-1] |= ending(assemble(observed[index]))
                if finished == len(observed) and not include_usage:
                    answers = list(map(assemble, observed))
                    extension = await run_in_thread(_steering_extension, work, answers)
            for delta in deltas:
                yield Event({**head, "choices": [delta], **usage, **(extension if delta is deltas[-1] else {})})
    if include_usage:
        yield Event(await run_in_thread(lambda: response(work, head, [], list(map(assemble, observed)))))
    yield Event("[DONE]")


def envelope(work: OpenAIWork, prefix: str, kind: str) -> dict[str, Any]:
    """Returns the fields that every response and chunk starts with. prefix: of the id."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": work.created,
        "model": work.model,
        "system_fingerprint": work.context.engine.info.fingerprint[:16],
    }


def response(
    work: OpenAIWork, head: dict[str, Any], described: Sequence[dict[str, Any]], answers: Sequence[Answer]
) -> dict[str, Any]:
    """Returns a response with the choices described, and the usage and steering of all answers."""
    usage = _usage_of(work, answers)
    return {**head, "choices": described, "usage": usage, **_steering_extension(work, answers)}


def ending(answer: Answer) -> dict[str, Any]:
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
