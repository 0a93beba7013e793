"""Whole answers from an engine: one, or several samples of one request with seeds of their own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from steering.engine.api import Engine, Finish, GenerationRequest, TokenEvent
from steering.errors import InternalError, InvalidRequest, NonfiniteActivations, Overloaded
from steering.workflows.progress import Progress, silent

T = TypeVar("T")
AT_ONCE = 16
"""Requests that background work keeps in the engine at a time: enough to fill a batch, few enough to leave a queue."""
_MASK = (1 << 64) - 1


def mix(seed: int, choice: int) -> int:
    """The seed of choice `choice` of a request: seed_0 = seed, the others spread over 64 bits.

    seed_j = f(seed + j * 0x9E3779B97F4A7C15 mod 2^64), f the finalizer of SplitMix64 (Steele, Lea, Flood 2014): a
    bijection, so no two of the later choices share their noise. Plain integers, hence the same on every platform.
    """
    if choice == 0:
        return seed
    value = (seed + choice * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer. tokens: the ids of `events`, one event a token; text also has the last characters, which
    became certain only when the answer ended."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    events: tuple[TokenEvent, ...]


def assemble(events: Sequence[TokenEvent]) -> Answer:
    """The answer that a complete run of events makes. Raises InternalError when the last event does not end it."""
    if not events or events[-1].finish is None:
        raise InternalError("the engine's stream ended without saying how")
    tokens = tuple(event for event in events if event.token_id >= 0)
    return Answer(
        text="".join(event.text for event in events),
        tokens=tuple(event.token_id for event in tokens),
        finish=events[-1].finish,
        events=tokens,
    )


@asynccontextmanager
async def opened(engine: Engine, request: GenerationRequest) -> AsyncIterator[AsyncIterator[TokenEvent]]:
    """The engine's stream for a request, closed on the way out however that happens: closing is the cancel."""
    events = engine.generate(request)
    try:
        yield events
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def answer(engine: Engine, request: GenerationRequest) -> Answer:
    """The whole answer to one request. Raises what `Engine.generate` raises; a cancelled caller frees the row."""
    async with opened(engine, request) as stream:
        return assemble([event async for event in stream])


def choices(request: GenerationRequest, n: int) -> tuple[GenerationRequest, ...]:
    """The same request n times, choice j with seed mix(seed, j)."""
    if n < 1:
        raise InvalidRequest(f"n must be at least 1, got {n}", param="n")
    sampling = request.sampling
    return tuple(replace(request, sampling=replace(sampling, seed=mix(sampling.seed, j))) for j in range(n))


async def answers(engine: Engine, request: GenerationRequest, n: int) -> tuple[Answer, ...]:
    """n samples of one request, all in the engine's batch at once. The first failure ends the others and is raised."""
    return await gathered([answer(engine, one) for one in choices(request, n)])


async def gathered(work: Sequence[Awaitable[T]]) -> tuple[T, ...]:
    """Results in order. When one fails or the caller is cancelled the rest are cancelled and awaited before it is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def background(
    engine: Engine, requests: Sequence[GenerationRequest], *, progress: Progress | None = None, pause: float = 0.5
) -> tuple[Answer, ...]:
    """Many answers in order, AT_ONCE at a time, behind live traffic. A full queue is waited for, `pause` seconds a try.

    Raises what `Engine.generate` raises otherwise; then, and when cancelled, every row is freed first.
    """
    outcomes = await attempts(engine, requests, progress=progress, pause=pause)
    for outcome in outcomes:
        if isinstance(outcome, NonfiniteActivations):
            raise outcome
    return tuple(outcome for outcome in outcomes if isinstance(outcome, Answer))


async def attempts(
    engine: Engine, requests: Sequence[GenerationRequest], *, progress: Progress | None = None, pause: float = 0.5
) -> tuple[Answer | NonfiniteActivations, ...]:
    """As `background`, for plans that may well break the model: an answer that went out of range is given as its error."""
    report, done, door = progress or silent, 0, asyncio.Semaphore(AT_ONCE)

    async def one(request: GenerationRequest) -> Answer | NonfiniteActivations:
        nonlocal done
        async with door:
            found = await _patiently(engine, replace(request, priority=1), pause)
        done += 1
        report(done, len(requests), "generating")
        return found

    return await gathered([one(request) for request in requests])


async def _patiently(engine: Engine, request: GenerationRequest, pause: float) -> Answer | NonfiniteActivations:
    while True:
        try:
            return await answer(engine, request)
        except Overloaded:
            await asyncio.sleep(pause)
        except NonfiniteActivations as error:
            return error
