"""Runs generation requests to complete answers: one, several samples of one request, or a background batch."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeAlias, TypeVar

from steering.engine.api import Engine, Finish, GenerationRequest, Prompt, SamplingParams, TokenEvent
from steering.errors import InternalError, InvalidRequest, NonfiniteActivations, Overloaded
from steering.injection.readings import RaisedMonitor
from steering.vectors import mix

K = TypeVar("K")
T = TypeVar("T")
Item = TypeVar("Item")
BACKGROUND_CONCURRENCY = 16
"""Background requests in the engine at a time: enough to fill a batch, few enough to leave a queue."""
STREAM_BUFFER = 256
"""Items of interleaved streams that may wait for a slow reader before the streams wait too."""
Progress: TypeAlias = Callable[[int, int, str], None]
"""progress(done, total, message): called on the event loop, often; it must return at once."""


def ignore_progress(done: int, total: int, message: str) -> None:
    """Does nothing; the default of callers that pass no callback."""


def progress_of_part(progress: Progress, start: int, total: int) -> Progress:
    """Returns the callback of a part of the work, whose steps follow the first `start` of `total`."""
    return lambda done, _, message: progress(start + done, total, message)


def means(rows: Sequence[Mapping[K, float]]) -> dict[K, float]:
    """Averages by key, over the answers that have it."""
    if len(rows) == 1:  # most answers; fmean takes a microsecond a layer
        return dict(rows[0])
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: fmean(row[key] for row in rows if key in row) for key in keys}


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer. tokens: ids of `events`. raised: monitors, each with its token; None for the prompt."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    events: tuple[TokenEvent, ...]
    raised: tuple[tuple[int | None, RaisedMonitor], ...] = ()


def assemble(events: Sequence[TokenEvent]) -> Answer:
    """Builds the answer from its complete events. Raises InternalError when the last event does not end it."""
    if not events or events[-1].finish is None:
        raise InternalError("the engine's stream ended without a finish event")
    tokens = tuple(event for event in events if event.token_id >= 0)
    return Answer(
        text="".join(event.text for event in events),
        tokens=tuple(event.token_id for event in tokens),
        finish=events[-1].finish,
        events=tokens,
        raised=tuple(
            (None if one.monitor.at == "prompt" else event.index, one) for event in events for one in event.raised
        ),
    )


async def stream_events(engine: Engine, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
    """Yields the events of one request, as its `observe` passes them on; closing cancels the request."""
    async with aclosing(engine.generate(request)) as events:
        seen = events if request.observe is None else request.observe(request, events)
        async with aclosing(seen):
            async for event in seen:
                yield event


async def answer(engine: Engine, request: GenerationRequest) -> Answer:
    """Returns the whole answer to one request. Raises what `Engine.generate` raises; cancelling frees the row."""
    async with aclosing(stream_events(engine, request)) as stream:
        return assemble([event async for event in stream])


def seeded(prompts: Sequence[Prompt], sampling: SamplingParams) -> list[GenerationRequest]:
    """Returns an unsteered request for each prompt, that of prompt i with seed mix(seed, i)."""
    return [
        GenerationRequest(prompt, replace(sampling, seed=mix(sampling.seed, i))) for i, prompt in enumerate(prompts)
    ]


def choices(request: GenerationRequest, n: int) -> tuple[GenerationRequest, ...]:
    """Returns the same request n times, choice j with seed mix(seed, j)."""
    if n < 1:
        raise InvalidRequest(f"n must be at least 1, got {n}", param="n")
    sampling = request.sampling
    return tuple(replace(request, sampling=replace(sampling, seed=mix(sampling.seed, j))) for j in range(n))


async def answers(engine: Engine, request: GenerationRequest, n: int) -> tuple[Answer, ...]:
    """Returns n samples of one request, all in the batch at once. The first failure ends the others and is raised."""
    return await gathered([answer(engine, one) for one in choices(request, n)])


async def gathered(work: Sequence[Awaitable[T]]) -> tuple[T, ...]:
    """Returns results in order. On a failure or cancellation the rest are cancelled and awaited before it is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def mapped(
    work: Callable[[Item], Awaitable[T]], items: Sequence[Item], at_once: int, report: Callable[[int], None]
) -> tuple[T, ...]:
    """Returns the results for all items in order, `at_once` of them in work. report: called with the number done."""
    done, slots = 0, asyncio.Semaphore(at_once)

    async def one(item: Item) -> T:
        nonlocal done
        async with slots:
            result = await work(item)
        done += 1
        report(done)
        return result

    return await gathered([one(item) for item in items])


async def interleaved(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yields (stream index, item) as the items arrive. The first failure closes all streams and is raised."""
    if len(streams) == 1:  # no task and no queue between the engine and the reader
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(maxsize=STREAM_BUFFER)

    async def follow(index: int, stream: AsyncGenerator[T, None]) -> None:
        async with aclosing(stream):
            async for item in stream:
                await queue.put((index, item))

    async def follow_all() -> None:
        """Puts the items of all streams into the queue, then None, or the exception of the first that failed."""
        try:
            await gathered([follow(index, stream) for index, stream in enumerate(streams)])
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    following = asyncio.create_task(follow_all())
    try:
        while (received := await queue.get()) is not None:
            if isinstance(received, Exception):
                raise received
            yield received
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def background(
    engine: Engine, requests: Sequence[GenerationRequest], *, progress: Progress = ignore_progress, pause: float = 0.5
) -> tuple[Answer, ...]:
    """Returns many answers in order, as `attempts` does. Raises the first error of an answer that became non-finite."""
    found: list[Answer] = []
    for outcome in await attempts(engine, requests, progress=progress, pause=pause):
        if isinstance(outcome, NonfiniteActivations):
            raise outcome
        found.append(outcome)
    return tuple(found)


async def attempts(
    engine: Engine, requests: Sequence[GenerationRequest], *, progress: Progress = ignore_progress, pause: float = 0.5
) -> tuple[Answer | NonfiniteActivations, ...]:
    """Returns many answers in order, BACKGROUND_CONCURRENCY at a time, at background priority; the error of one that
    became non-finite stands in its place. A full queue is retried every `pause` seconds. Raises what `Engine.generate`
    raises otherwise; then, and when cancelled, every row is freed first."""

    async def attempt(request: GenerationRequest) -> Answer | NonfiniteActivations:
        while True:
            try:
                return await answer(engine, replace(request, priority=1))
            except Overloaded:
                await asyncio.sleep(pause)
            except NonfiniteActivations as error:
                return error

    return await mapped(
        attempt, requests, BACKGROUND_CONCURRENCY, lambda done: progress(done, len(requests), "generating")
    )
