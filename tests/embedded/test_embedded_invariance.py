"""In bfloat16, compiled and with our kernels: every answer and every log probability has the bits of the request alone, whatever the
engine does meanwhile. Random traffic: lengths, plans, samplers, arms, n, prefix hits, cut prompts, preemption, captures, clients that leave.

INVARIANCE_EXAMPLES: how many requests (default 100).
"""

import asyncio
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest, SamplingParams
from steering.engine.options import EngineLimits, EngineOptions
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.factory import open_engine
from steering.injection.readings import Reading
from steering.model.device import has_avx2
from steering.model.embedded import EMBEDDED_MODEL
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.vectors import ConceptVector
from tests.engines import COMPILE_SECONDS, Outcome, run, run_alone, until_compiled
from tests.plans import NAMES, plan_for, random_items, vectors_for

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.timeout(COMPILE_SECONDS + 7200),
    pytest.mark.skipif(not has_avx2(), reason="our kernels need AVX2"),
]
EXAMPLES = int(os.environ.get("INVARIANCE_EXAMPLES", "100"))
FIRST_SEED = int(os.environ.get("INVARIANCE_SEED", "0"))
CROWD = 0
"""A wave of 64 that is preempted however fast they come: each has one block at first and needs two before the first of them ends,
which is more than the cache has."""
WAVES = (1, 2, 7, 16, 33, CROWD, 64)
BLOCKS = 96  # of the cache
POSITION_BYTES = 30 * 2 * 3 * 64 * 2
SHARED = (0, 5, 33, 100, 330)  # tokens with which prompts of a wave begin alike
SAMPLERS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8},
    {"temperature": 1.1, "top_k": 20},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.05, "top_p": 0.95},
    {"repetition_penalty": 1.2, "presence_penalty": 0.3},
    {"temperature": 0.7, "frequency_penalty": 0.4, "logit_bias": {11: 2.0, 260: -3.0}},
)


@pytest.fixture(scope="module")
def engine(compiled_cache: Path) -> Iterator[TransformersEngine]:
    """The embedded model as it is served, with a small cache and short pieces of prompts while streams run."""
    limits = EngineLimits(cache_bytes=BLOCKS * 16 * POSITION_BYTES, prefill_tokens=96, contended_running=64)
    options = EngineOptions(
        EMBEDDED_MODEL, compiled_cache, device="cpu", dtype="bfloat16", compiled=True, limits=limits
    )
    engine = open_engine(options)
    asyncio.run(until_compiled(engine, compiled_cache))
    yield engine
    asyncio.run(engine.close())


@dataclass(frozen=True)
class Arrival:
    """A request, when it comes, and after how many tokens its client leaves (0: it stays)."""

    request: GenerationRequest
    seconds: float
    leaves_after: int


class Traffic:
    """Random requests of a seed."""

    def __init__(self, seed: int, engine: TransformersEngine, vectors: Mapping[str, ConceptVector]) -> None:
        self.rng, self._info, self._vectors, self._seed = random.Random(seed), engine.info, vectors, seed
        self._beginnings = [self.ids(length) for length in SHARED]

    def ids(self, count: int) -> tuple[int, ...]:
        """Random tokens."""
        return tuple(self.rng.randrange(20, self._info.vocab_size) for _ in range(count))

    async def plan(self) -> SteeringPlan:
        """A random plan, or none."""
        if self.rng.random() < 0.3:
            return UNSTEERED
        items = random_items(self.rng.randrange(1 << 30), self._info.layer_count)
        return await plan_for(items, self._vectors, self._info)

    def _sampling(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.rng.choice((1, 2, 5, 12, 24)),
            ignore_eos=True,
            seed=self.rng.randrange(1 << 40),
            logprobs=self.rng.choice((None, 0, 5)),
            **self.rng.choice(SAMPLERS),
        )

    def _readings(self) -> tuple[Reading, ...]:
        layers = [self.rng.randrange(self._info.layer_count) for _ in range(self.rng.choice((0, 0, 1, 2)))]
        entries = [(name, layer, self._vectors[name].layers[layer]) for name, layer in zip(NAMES, layers, strict=False)]
        return tuple(Reading(name, layer, entry.direction, entry.scale) for name, layer, entry in entries)

    async def _group(self) -> list[GenerationRequest]:
        """One request, the arms of a comparison, or several answers to one prompt."""
        prompt = self.rng.choice(self._beginnings) + self.ids(self.rng.choice((1, 2, 9, 40)))
        one = GenerationRequest(
            prompt, self._sampling(), await self.plan(), self._readings(), cache_salt=f"wave {self._seed}"
        )
        kind, count = self.rng.choice(("one", "one", "arms", "n")), self.rng.choice((2, 3))
        if kind == "arms":
            return [
                one,
                replace(one, plan=UNSTEERED),
                *[replace(one, plan=await self.plan()) for _ in range(count - 2)],
            ]
        if kind == "n":
            seeds = [replace(one.sampling, seed=one.sampling.seed + number) for number in range(count)]
            return [replace(one, sampling=sampling) for sampling in seeds]
        return [one]

    async def crowd(self) -> list[Arrival]:
        """64 requests that come at once, with prompts of at most a block and answers that need two."""
        sampling = [replace(self._sampling(), max_tokens=24) for _ in range(64)]
        requests = [
            GenerationRequest(
                self.ids(self.rng.randrange(8, 15)), each, await self.plan(), cache_salt=f"wave {self._seed}"
            )
            for each in sampling
        ]
        return [Arrival(request, 0.0, 0) for request in requests]

    async def wave(self, count: int) -> list[Arrival]:
        """Requests that come within moments of each other."""
        if count == CROWD:
            return await self.crowd()
        requests: list[GenerationRequest] = []
        while len(requests) < count:
            requests += await self._group()
        spread = self.rng.choice((0.0, 0.05, 0.5))
        return [
            Arrival(request, self.rng.random() * spread, self.rng.choice((0,) * 15 + (1, 3)))
            for request in requests[:count]
        ]


async def arrived(engine: TransformersEngine, arrival: Arrival) -> Outcome | None:
    """Runs a request when it comes; None if its client leaves."""
    await asyncio.sleep(arrival.seconds)
    if not arrival.leaves_after:
        return await run(engine, arrival.request)
    async with aclosing(engine.generate(arrival.request)) as events:
        async for event in events:
            if event.index >= arrival.leaves_after:
                break
    return None


async def in_company(
    engine: TransformersEngine, traffic: Traffic, count: int
) -> list[tuple[GenerationRequest, Outcome]]:
    """Runs a wave while texts are read in the background. Returns those whose clients stay."""
    arrivals = await traffic.wave(count)
    texts = [CapturePrompt(traffic.ids(30), plan=await traffic.plan()) for _ in range(traffic.rng.choice((1, 3)))]
    spec = CaptureSpec((traffic.rng.choice((3, 29)),), "mean", logits=traffic.rng.random() < 0.5)
    reading = asyncio.create_task(engine.capture(texts, spec))
    outcomes = await asyncio.gather(*(arrived(engine, one) for one in arrivals))
    await reading
    pairs = zip(arrivals, outcomes, strict=True)
    return [(arrival.request, outcome) for arrival, outcome in pairs if outcome is not None]


def answer(outcome: Outcome) -> list[tuple[object, ...]]:
    """Every number of an answer."""
    return [(e.token_id, e.text, e.logprob, e.top_logprobs, dict(e.readout)) for e in outcome.events]


async def test_every_answer_has_the_bits_of_the_request_alone(engine: TransformersEngine) -> None:
    vectors = vectors_for(engine.info)
    before, compared, seed, different = engine.stats(), 0, FIRST_SEED, []
    for wave in cycle(WAVES):
        if compared >= EXAMPLES:
            break
        traffic = Traffic(seed, engine, vectors)
        pairs = await in_company(engine, traffic, wave)
        requests = [replace(one, cache_salt=f"alone {seed} {index}") for index, (one, _) in enumerate(pairs)]
        for (request, together), alone in zip(pairs, await run_alone(engine, requests), strict=True):
            if answer(together) != answer(alone):
                different.append((seed, request.plan.spec, request.sampling))
        compared += len(pairs)
        seed += 1
    after = engine.stats()
    assert after.preemptions > before.preemptions, "no request was preempted"
    assert after.cached_tokens > before.cached_tokens, "no prompt was shared"
    assert not different, f"{len(different)} of {compared} answers differ: {different[:3]}"
