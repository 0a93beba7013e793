"""Answers one prompt n times, steered: as one response or as a stream of events."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.responses import Response

from app.http.answers import event_in_thread, json_in_thread
from app.http.sse import Event
from app.metrics import TokenClock
from app.services.context import Context
from app.services.generation.flags import NO_FLAGS, Flags
from app.services.generation.responses import applied_steering, choice_answer, record_of, token_piece, usage_of
from app.services.inputs import prompt_of, sampling_params, tokenize
from app.services.limits import check_limit, check_sampling
from app.services.reading.responses import ALTERNATIVE_BYTES
from steering.engine.api import GenerationRequest, TokenEvent
from steering.plan.types import SteeringPlan
from steering.schemas.generation import GenerateAnswer, GenerateRequest
from steering.schemas.steering import Record
from steering.threads import run_in_thread
from steering.workflows.generate import Answer, answers, assemble, choices, interleaved, stream_events


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A generation whose names are resolved. tokens: whether the response lists tokens. warnings: added to the plan's."""

    context: Context
    request: GenerationRequest
    n: int
    tokens: bool
    flags: Flags = NO_FLAGS
    warnings: tuple[str, ...] = ()

    @property
    def cost(self) -> int:
        """The tokens that count against the limit of the key: the prompt, and all that may be generated."""
        return len(self.request.prompt) + self.n * self.request.sampling.max_tokens

    @property
    def record(self) -> Record:
        """The record that repeats these answers."""
        request = self.request
        return record_of(self.context, request.prompt, request.sampling, request.plan, self.n)


def check(context: Context, body: GenerateRequest) -> None:
    """Raises LimitExceeded for what is beyond the operator's limits."""
    check_sampling(context.settings, body, body.n)
    check_limit(len(body.flag), context.settings.max_readouts, "flags", "flag")


async def prepare(context: Context, body: GenerateRequest, plan: SteeringPlan | None = None) -> Generation:
    """Resolves the request. Everything that can be refused is refused here, before any device work.

    plan: of its steering, where that was resolved before.
    """
    check(context, body)
    if plan is None:
        plan = await context.plan(body.steering)
    readings = await context.readings(body.readout)
    readings += await context.readings([one.vector for one in body.flag if one.vector not in body.readout], "flag")
    given = prompt_of(body, context.settings)
    prompt = await tokenize(context.engine, given, body.max_tokens, plan)
    sampling = sampling_params(body, prompt.max_tokens)
    request = context.request(prompt.token_ids, sampling, prompt.plan, readings)
    flags = Flags(tuple(body.flag), context.state.metrics)
    if body.lists_tokens:
        listed = body.n * prompt.max_tokens * (1 + (body.top_logprobs or 0) + len(body.readout))
        context.admission.reserve(listed * ALTERNATIVE_BYTES)
    return Generation(context, request, body.n, body.lists_tokens, flags)


async def answer(work: Generation) -> GenerateAnswer:
    """Returns the response when the last answer has ended."""
    return await run_in_thread(_response, work, await _answers(work))


async def response(work: Generation) -> Response:
    """Returns what `answer` does, as JSON."""
    found = await _answers(work)
    return await json_in_thread(lambda: _response(work, found), exclude_none=True)


async def _answers(work: Generation) -> tuple[Answer, ...]:
    found = await answers(work.context.engine, work.request, work.n)
    for one in found:
        for event in one.events:
            work.flags.count(event)
    return found


def _response(work: Generation, found: tuple[Answer, ...]) -> GenerateAnswer:
    """Builds the response, which is also the data of the `done` event. Runs in a thread."""
    engine, request = work.context.engine, work.request
    reports = [one.finish.steering for one in found]
    work.context.state.metrics.observe_dose(reports)
    return GenerateAnswer(
        id=f"gen-{secrets.token_hex(12)}",
        model=engine.info.name,
        seed=request.sampling.seed,
        choices=[
            choice_answer(i, one, engine.tokenizer, tokens=work.tokens, flags=work.flags.raised(one))
            for i, one in enumerate(found)
        ],
        usage=usage_of(found, work.n),
        steering=applied_steering(request.plan, reports, work.record, work.warnings),
    )


async def events(work: Generation) -> AsyncGenerator[Event, None]:
    """Yields a `token` event for each token of every answer, then `done`. Closing it frees every row."""
    observed: list[list[TokenEvent]] = [[] for _ in range(work.n)]
    clock = TokenClock(work.context.state.metrics)
    tokenizer = work.context.engine.tokenizer
    streams = [stream_events(work.context.engine, one) for one in choices(work.request, work.n)]
    async with aclosing(interleaved(streams)) as tokens:
        async for choice, event in tokens:
            clock.observe(choice)
            observed[choice].append(event)
            if event.token_id >= 0 or event.text:
                yield Event(token_piece(event, choice, tokenizer, flags=work.flags.count(event)), "token")
    await asyncio.sleep(0)  # the last tokens of all streams are sent before any response is built
    found = tuple(assemble(one) for one in observed)
    yield await event_in_thread(lambda: _response(work, found), "done")
