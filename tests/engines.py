"""Runs engines in tests: engines over tiny models, and concurrent requests."""

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import Engine, Finish, GenerationRequest, SamplingParams, TokenEvent
from steering.engine.cpu import compilation
from steering.engine.cpu.compile_worker import USUAL_PRIORITY
from steering.engine.cpu.executor import CompiledExecutor
from steering.engine.cpu.kernels.library import library_path
from steering.engine.options import EngineLimits, EngineOptions
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.factory import compile_request
from steering.model.cache_folder import artifact_folder, private_folder
from steering.model.info import ModelInfo
from steering.model.loading import load, opened
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for
from tests.polling import until

COMPILE_SECONDS = 1500.0
"""Limit of a compilation. It takes two minutes on an idle machine. Tests that compile have a longer timeout."""


@dataclass
class Outcome:
    """The result of one request."""

    tokens: list[int]
    text: str
    finish: Finish
    events: list[TokenEvent]


@asynccontextmanager
async def engine_over(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, limits: EngineLimits | None = None
) -> AsyncIterator[TransformersEngine]:
    """Yields an engine and closes it."""
    engine = TransformersEngine(opened(model, tokenizer, name="tiny"), limits)
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def family_engine(
    family: str, tokenizer: PreTrainedTokenizerFast, limits: EngineLimits | None = None
) -> AsyncIterator[TransformersEngine]:
    """Yields an engine over a new tiny model of a family."""
    async with engine_over(FAMILIES[family](), tokenizer, limits) as engine:
        yield engine


async def run(engine: Engine, request: GenerationRequest) -> Outcome:
    """Runs one request to its end."""
    events = [event async for event in engine.generate(request)]
    finish = events[-1].finish
    assert finish is not None
    tokens = [event.token_id for event in events if event.finish is None]
    return Outcome(tokens, "".join(event.text for event in events), finish, events)


async def run_all(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Outcome]:
    """Runs all requests in one batch."""
    return list(await asyncio.gather(*(run(engine, request) for request in requests)))


async def run_at_once(engine: TransformersEngine, requests: Sequence[GenerationRequest]) -> list[Outcome]:
    """Runs all requests in one batch whose first pass begins when every one of them waits, however fast the passes are."""
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        released.wait()

    engine._loop.call(hold)
    try:
        await until(held.is_set)
        tasks = [asyncio.create_task(run(engine, request)) for request in requests]
        await until(lambda: engine.stats().waiting == len(requests) or any(task.done() for task in tasks))
    finally:
        released.set()
    return list(await asyncio.gather(*tasks))


async def run_alone(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Outcome]:
    """Runs requests one after the other."""
    return [await run(engine, request) for request in requests]


def sampling(count: int, **settings: Any) -> SamplingParams:
    """Returns parameters for exactly `count` tokens."""
    return SamplingParams(max_tokens=count, ignore_eos=True, **settings)


async def random_requests(
    info: ModelInfo, prompts: Sequence[tuple[int, ...]], tokens: int, count: int
) -> list[GenerationRequest]:
    """Returns requests of similar length with random plans, greedy and sampled, with log-probabilities."""
    vectors = vectors_for(info)
    return [
        GenerationRequest(
            prompts[seed % len(prompts)],
            sampling(tokens + seed % 3, temperature=seed % 3 * 0.5, seed=seed, logprobs=0),
            await plan_for(random_items(seed + 500, info.layer_count), vectors, info),
        )
        for seed in range(count)
    ]


def give_library(library: Path, cache: Path) -> None:
    """Copies an existing library to where a compilation with this cache folder looks for it, so that the worker builds none."""
    private_folder(cache)
    private_folder(folder := artifact_folder(cache))
    if not (target := library_path(folder)).exists():
        copied = Path(shutil.copy(library, target.with_suffix(".copy")))
        copied.chmod(0o600)
        copied.rename(target)


@contextmanager
def compiled_soon() -> Iterator[None]:
    """Within it a compilation of this process begins at once, and its worker has the usual priority."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "START_DELAY", 0.0)
        patch.setenv(USUAL_PRIORITY, "1")
        yield


@contextmanager
def eager_and_compiled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, dtype: str, library: Path
) -> Iterator[tuple[TransformersEngine, TransformersEngine]]:
    """Yields two engines over a model in a folder. The second serves while it is compiled; in float32 its tokens must not
    change. library: an existing one, so that the worker builds none."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    source = str(folder / "model")
    loaded = [load(source, cache_dir=folder, device="cpu", dtype=dtype) for _ in range(2)]
    eager = TransformersEngine(loaded[0])
    request = compile_request(loaded[1], EngineOptions(source, folder))
    give_library(library, folder)
    with compiled_soon():
        compiled = TransformersEngine(loaded[1], compile_request=request)
        asyncio.run(until_compiled(compiled, folder, eager if dtype == "float32" else None))
    yield eager, compiled
    asyncio.run(eager.close())
    asyncio.run(compiled.close())


async def until_compiled(engine: TransformersEngine, cache: Path, eager: Engine | None = None) -> None:
    """Generates until the engine is compiled. The tokens must equal those of `eager`, before and after."""
    request = GenerationRequest(tuple(b"Once upon a time"), sampling(20))
    expected = None if eager is None else (await run(eager, request)).tokens
    executor = engine._runner.executor
    assert isinstance(executor, CompiledExecutor)
    deadline, compiling = time.monotonic() + COMPILE_SECONDS, True
    while compiling and time.monotonic() < deadline:
        compiling = executor.compilation.is_alive()  # read first: the next answer already runs on what it installed
        tokens = (await run(engine, request)).tokens
        assert expected is None or tokens == expected
        if engine.stats().executor.startswith("compiled"):
            return
        await asyncio.sleep(2.0)  # the compiler needs the processors
    pytest.fail((cache / "compile.log").read_text()[-2000:])


def logprob_differences(one: Outcome, other: Outcome) -> list[float]:
    """Returns differences of log-probabilities in nats, per token up to the first different token."""
    found: list[float] = []
    for event, its in zip(one.events, other.events, strict=True):
        if event.token_id != its.token_id or event.logprob is None or its.logprob is None:
            break
        found.append(abs(event.logprob - its.logprob))
    return found
