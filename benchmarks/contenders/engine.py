"""Our engine without a server: streams that run together, a long prompt among them, and extraction."""

import asyncio
import json
import time
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import torch

from benchmarks.contenders.open_engine import open_endless, until_compiled
from benchmarks.contenders.protocol import answer_questions
from benchmarks.stream_timing import figures
from benchmarks.vectors import Vectors
from benchmarks.workload import Intervention, prompts
from steering.engine.api import CapturePrompt, CaptureSpec, Engine, GenerationRequest, SamplingParams
from steering.extraction import METHODS
from steering.pairs import ContrastivePair, PairSet
from steering.plan.dose import DoseGuard
from steering.plan.resolve import resolve
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import SteeringSpec
from steering.threads import disable_intra_op_threads
from steering.workflows.extraction.extract import ExtractionRequest, extract

T = TypeVar("T")
WARM_TOKENS, WARM_LENGTH = 4, 32


class EngineSide:
    """Answers questions about one engine. One event loop runs for the length of each answer."""

    def __init__(self, engine: Engine, runner: asyncio.Runner) -> None:
        self._engine, self._runner = engine, runner
        self._vectors = Vectors(engine.info)
        self._plans: dict[str, SteeringPlan] = {"[]": UNSTEERED}
        self._warmed = 0

    def generate(
        self,
        prompts: list[list[int]],
        new_tokens: int,
        steering: list[list[Intervention]],
        warm_length: int = WARM_LENGTH,
    ) -> dict[str, Any]:
        """All prompts at once, each with its own steering; see `streams.figures`. Before that a short run like it."""
        return self._run(self._generate(prompts, new_tokens, steering, warm_length))

    def long_prompt(
        self, prompts: list[list[int]], new_tokens: int, steering: list[list[Intervention]], long: list[int], after: int
    ) -> dict[str, Any]:
        """Streams, and a long prompt that arrives when they have `after` tokens. Gaps of all streams, in seconds, and
        those that overlap the time from the long prompt's arrival to its first token."""
        return self._run(self._long_prompt(prompts, new_tokens, steering, long, after))

    def read_and_fit(self, pairs: list[list[str]]) -> dict[str, Any]:
        """Seconds from pairs to a direction at every layer: what the peers do as well."""
        return self._run(self._read_and_fit(pairs))

    def extract(self, pairs: list[list[str]]) -> dict[str, Any]:
        """Seconds from pairs to a whole vector: the same, and its quality card from held-out pairs."""
        return self._run(self._extract(pairs))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _plan(self, items: list[Intervention]) -> SteeringPlan:
        key = json.dumps(items)
        if key not in self._plans:
            spec = SteeringSpec.model_validate({"interventions": items})
            guard = DoseGuard(action="off")
            self._plans[key] = await resolve(spec, self._vectors, self._engine.info, guard=guard)
        return self._plans[key]

    async def _stream(self, prompt: list[int], new_tokens: int, plan: SteeringPlan) -> list[float]:
        """Arrival times of the tokens of one answer."""
        request = GenerationRequest(tuple(prompt), SamplingParams(max_tokens=new_tokens, ignore_eos=True), plan)
        return [time.perf_counter() async for event in self._engine.generate(request) if event.finish is None]

    async def _generate(
        self,
        rows: list[list[int]],
        new_tokens: int,
        steering: list[list[Intervention]],
        warm_length: int = WARM_LENGTH,
    ) -> dict[str, Any]:
        plans = [await self._plan(items) for items in steering]
        self._warmed += 1
        warm = prompts(len(rows), warm_length, f"warm {self._warmed}")
        await asyncio.gather(*map(self._stream, warm, [WARM_TOKENS] * len(rows), plans))
        start = time.perf_counter()
        arrivals = await asyncio.gather(*map(self._stream, rows, [new_tokens] * len(rows), plans))
        return figures(start, arrivals)

    async def _long_prompt(
        self,
        rows: list[list[int]],
        new_tokens: int,
        steering: list[list[Intervention]],
        long: list[int],
        after: int,
    ) -> dict[str, Any]:
        plans = [await self._plan(items) for items in steering]
        await self._generate(rows, WARM_TOKENS, steering)
        arrived = asyncio.Event()
        arrivals: list[list[float]] = [[] for _ in rows]

        async def follow(index: int) -> None:
            request = GenerationRequest(
                tuple(rows[index]), SamplingParams(max_tokens=new_tokens, ignore_eos=True), plans[index]
            )
            async for event in self._engine.generate(request):
                if event.finish is None:
                    arrivals[index].append(time.perf_counter())
                if all(len(times) >= after for times in arrivals):
                    arrived.set()

        async def disturb() -> tuple[float, float]:
            await arrived.wait()
            start = time.perf_counter()
            return start, (await self._stream(long, 1, UNSTEERED))[0]

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*(follow(index) for index in range(len(rows))))
        start, end = await disturbing
        gaps = [gap for times in arrivals for gap in pairwise(times)]
        return {
            "gaps": [b - a for a, b in gaps],
            "gaps_during": [b - a for a, b in gaps if a < end and b > start],
            "gaps_before": [b - a for a, b in gaps if b <= start],
            "first_token_of_long": end - start,
        }

    async def _read_and_fit(self, pairs: list[list[str]]) -> dict[str, Any]:
        engine, method = self._engine, METHODS["mean_difference"]
        texts = [text for pair in pairs for text in pair]
        start = time.perf_counter()
        layers = tuple(range(engine.info.layer_count))
        read = await engine.capture([CapturePrompt(text) for text in texts], CaptureSpec(layers), priority=0)
        activations = torch.cat([capture.activations for capture in read], dim=1)
        for layer in layers:
            method.fit(activations[layer, 0::2], activations[layer, 1::2], True)
        return {"seconds": time.perf_counter() - start}

    async def _extract(self, pairs: list[list[str]]) -> dict[str, Any]:
        chosen = PairSet.of([ContrastivePair(positive, negative) for positive, negative in pairs])
        start = time.perf_counter()
        await extract(self._engine, ExtractionRequest("benchmark", chosen))
        return {"seconds": time.perf_counter() - start}


def begin(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Opens the engine and waits for its compiled steps. This thread lives as long as the engine and fits directions."""
    disable_intra_op_threads()
    runner = asyncio.Runner()
    engine = open_endless(options["source"], options["device"])
    runner.run(until_compiled(engine))
    side = EngineSide(engine, runner)
    handlers = {
        "generate": side.generate,
        "long_prompt": side.long_prompt,
        "read_and_fit": side.read_and_fit,
        "extract": side.extract,
    }
    return handlers, {"compiled": list(engine.stats().compiled), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    answer_questions(begin)
