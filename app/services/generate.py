"""One prompt, n answers: the request made ready, the plain answer, and the same as a stream of events."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from app.http.dependencies import plan_of, readings_of
from app.http.sse import Event
from app.metrics import Metrics
from app.services.flags import NO_FLAGS, Flags
from app.services.inputs import check_limit, prompt_of, sampling_of, shows_tokens, tokenized
from app.services.records import record_of
from app.services.responses import applied_steering, choice_answer, token_data, usage_of
from app.state import AppState
from steering.engine.api import Engine, GenerationRequest, TokenEvent
from steering.schemas.generation import GenerateAnswer, GenerateRequest
from steering.schemas.replay import Record
from steering.workflows.generate import Answer, answers, assemble, choices, interleaved, stream_events


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A generate request with every name resolved."""

    engine: Engine
    request: GenerationRequest
    n: int
    tokens: bool
    engine_name: str
    flags: Flags = NO_FLAGS

    @property
    def record(self) -> Record:
        """What makes these answers again."""
        request = self.request
        prompt = self.engine.tokenizer.encode(request.prompt)
        return record_of(self.engine.info, self.engine_name, prompt, request.sampling, request.plan, self.n)


async def prepared(state: AppState, body: GenerateRequest, salt: str) -> Generation:
    """Everything that can be refused is refused here, before any device work. salt: see GenerationRequest.cache_salt."""
    engine = state.engine
    plan = await plan_of(state, body.steering)
    check_limit(len(body.flag), state.settings.max_readouts, "flags", "flag")
    readings = await readings_of(state, body.readout)
    readings += await readings_of(state, [one.vector for one in body.flag if one.vector not in body.readout], "flag")
    prompt = await tokenized(engine, prompt_of(body, state.settings), body.max_tokens)
    sampling = sampling_of(body, state.settings, prompt.max_tokens)
    request = GenerationRequest(prompt.token_ids, sampling, plan, readings, cache_salt=salt)
    flags = Flags(body.flag, state.metrics)
    return Generation(engine, request, body.n, shows_tokens(body), state.settings.engine, flags)


async def whole(generation: Generation) -> GenerateAnswer:
    """All answers, when the last one is done."""
    found = await answers(generation.engine, generation.request, generation.n)
    for event in (event for one in found for event in one.events):
        generation.flags.seen(event)
    return finished(generation, found)


def finished(generation: Generation, found: tuple[Answer, ...]) -> GenerateAnswer:
    """Answers in the words of the wire."""
    engine, request, flags = generation.engine, generation.request, generation.flags
    return GenerateAnswer(
        id=f"gen-{secrets.token_hex(12)}",
        model=engine.info.name,
        seed=request.sampling.seed,
        choices=[
            choice_answer(i, one, engine.tokenizer, tokens=generation.tokens, flags=flags.raised(one.events))
            for i, one in enumerate(found)
        ],
        usage=usage_of(found),
        steering=applied_steering(request.plan, [one.finish.steering for one in found], generation.record),
    )


async def events(generation: Generation, metrics: Metrics) -> AsyncGenerator[Event, None]:
    """`token` events of all answers as they come, then `done`. Closing it frees every row."""
    telling = _Telling(generation, metrics)
    streams = [stream_events(generation.engine, one) for one in choices(generation.request, generation.n)]
    async with aclosing(interleaved(streams)) as pieces:
        async for choice, event in pieces:
            if (piece := telling.piece(event, choice)) is not None:
                yield piece
    await asyncio.sleep(0)  # the last tokens of all streams leave before anything is summed up
    yield telling.done()


class _Telling:
    """What has been heard of the answers, and how it is told."""

    def __init__(self, generation: Generation, metrics: Metrics) -> None:
        self._generation, self._metrics = generation, metrics
        self._tokenizer = generation.engine.tokenizer
        self._heard: list[list[TokenEvent]] = [[] for _ in range(generation.n)]
        self._started: float | None = time.perf_counter()

    def piece(self, event: TokenEvent, choice: int = 0) -> Event | None:
        """The `token` event; None where it would say nothing."""
        if self._started is not None:
            self._metrics.first_token_seconds.observe(time.perf_counter() - self._started)
            self._started = None
        self._heard[choice].append(event)
        if event.token_id < 0 and not event.text:
            return None
        raised = self._generation.flags.seen(event)
        return Event(token_data(event, choice, self._tokenizer, raised), "token")

    def done(self) -> Event:
        """The `done` event, when every answer has ended."""
        return Event(finished(self._generation, tuple(assemble(one) for one in self._heard)), "done")
