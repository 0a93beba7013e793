"""Our engine without a server: concurrent streams, a long prompt that arrives, a mixed load, and extraction."""

import asyncio
import gc
import json
import time
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import torch

from app.core.process_settings import keep_freed_memory
from benchmarks.contenders.open_engine import open_endless, until_compiled
from benchmarks.contenders.protocol import serve_requests
from benchmarks.memory import memory_in_use
from benchmarks.stream_timing import load_metrics, stream_metrics
from benchmarks.vectors import Vectors
from benchmarks.workload import NAMES, ONE_LAYER, Intervention, prompts
from steering.engine.api import CapturePrompt, CaptureSpec, Engine, GenerationRequest, SamplingParams
from steering.extraction import METHODS
from steering.injection.readings import NO_MONITORS, Monitor, MonitorSet, Reading
from steering.pairs import ContrastivePair, PairSet
from steering.plan.resolve import resolve
from steering.plan.types import UNSTEERED, DoseGuard, SteeringPlan
from steering.spec import SteeringSpec
from steering.threads import disable_intra_op_threads
from steering.workflows.extract import ExtractionRequest, extract

T = TypeVar("T")
WARM_TOKENS, WARM_LENGTH = 4, 32


class EngineContender:
    """Runs requests on one engine, each in one run of the event loop."""

    def __init__(self, engine: Engine, runner: asyncio.Runner) -> None:
        self._engine, self._runner = engine, runner
        self._vectors = Vectors(engine.info)
        self._plans: dict[str, SteeringPlan] = {"[]": UNSTEERED}
        self._monitors = NO_MONITORS
        self._warmed = 0

    def generate(
        self,
        prompts: list[list[int]],
        new_tokens: int,
        steering: list[list[Intervention]],
        warm_length: int = WARM_LENGTH,
        monitors: int = 0,
    ) -> dict[str, Any]:
        """Generates from all prompts at once, each with its own steering, after a short warm-up; see `stream_metrics`.

        monitors: how many read every row, each at a layer of its own.
        """
        if len(self._monitors.ordered) != monitors:
            self._monitors = self._run(self._watch(monitors))
        return self._run(self._generate(prompts, new_tokens, steering, warm_length))

    def long_prompt(
        self, prompts: list[list[int]], new_tokens: int, steering: list[list[Intervention]], long: list[int], after: int
    ) -> dict[str, Any]:
        """Runs streams, and a long prompt that arrives when each has `after` tokens. Returns the gaps between tokens in
        seconds, of all streams and of the time from the arrival of the long prompt to its first token."""
        return self._run(self._long_prompt(prompts, new_tokens, steering, long, after))

    def mixed_load(self, requests: list[dict[str, Any]], steering: list[list[Intervention]]) -> dict[str, Any]:
        """Sends each request at its time, with its own steering; see `load_metrics`."""
        return self._run(self._mixed_load(requests, steering))

    def read_and_fit(self, pairs: list[list[str]]) -> dict[str, Any]:
        """Returns the seconds from pairs to a direction at every layer, which the peers compute too."""
        return self._run(self._read_and_fit(pairs))

    def extract(self, pairs: list[list[str]]) -> dict[str, Any]:
        """Returns the seconds from pairs to a vector with its quality card from held-out pairs."""
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

    async def _watch(self, count: int) -> MonitorSet:
        """Returns monitors of which about every second score is beyond the bound."""
        found = []
        for number in range(count):
            vector, layer = await self._vectors.get(NAMES[number % len(NAMES)]), ONE_LAYER + number
            reading = Reading(vector.name, layer, vector.at(layer).direction, vector.at(layer).scale)
            found.append(Monitor(f"watch-{number}", vector.id, "", reading, above=True, bound=0.0, action="flag"))
        return MonitorSet(found)

    async def _stream(self, prompt: list[int], new_tokens: int, plan: SteeringPlan) -> list[float]:
        """Returns the arrival times of the tokens of one answer."""
        sampling = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        request = GenerationRequest(tuple(prompt), sampling, plan, monitors=self._monitors)
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
        return stream_metrics(start, arrivals)

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

        async def send_long_prompt() -> tuple[float, float]:
            await arrived.wait()
            start = time.perf_counter()
            return start, (await self._stream(long, 1, UNSTEERED))[0]

        long_prompt = asyncio.create_task(send_long_prompt())
        await asyncio.gather(*(follow(index) for index in range(len(rows))))
        start, end = await long_prompt
        gaps = [gap for times in arrivals for gap in pairwise(times)]
        return {
            "gaps": [b - a for a, b in gaps],
            "gaps_during": [b - a for a, b in gaps if a < end and b > start],
            "gaps_before": [b - a for a, b in gaps if b <= start],
            "first_token_of_long": end - start,
        }

    async def _mixed_load(self, requests: list[dict[str, Any]], steering: list[list[Intervention]]) -> dict[str, Any]:
        plans = [await self._plan(items) for items in steering]
        await self._generate(prompts(8, WARM_LENGTH, "warm mixed load"), WARM_TOKENS, steering[:8])
        start = time.perf_counter()

        async def send(request: dict[str, Any], plan: SteeringPlan) -> list[float]:
            await asyncio.sleep(max(0.0, start + request["at"] - time.perf_counter()))
            return await self._stream(request["prompt"], request["new_tokens"], plan)

        arrivals = await asyncio.gather(*map(send, requests, plans))
        return load_metrics([start + request["at"] for request in requests], arrivals)

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
    """Opens the engine and waits until it runs compiled, in a process set up as `steer serve` does. This thread also fits
    directions."""
    keep_freed_memory()
    disable_intra_op_threads()
    runner = asyncio.Runner()
    engine = open_endless(options["source"], options["device"], **options.get("more", {}))
    if options.get("more", {}).get("compiled", True):
        runner.run(until_compiled(engine))
    gc.freeze()
    ours = EngineContender(engine, runner)
    handlers = {
        "generate": ours.generate,
        "long_prompt": ours.long_prompt,
        "mixed_load": ours.mixed_load,
        "read_and_fit": ours.read_and_fit,
        "extract": ours.extract,
        "memory": lambda: {"used": memory_in_use(options["device"])},
    }
    stats = engine.stats()
    return handlers, {
        "executor": stats.executor,
        "threads": torch.get_num_threads(),
        "kernels": stats.kernels,
        "weight_bytes": dict(stats.weight_bytes),
    }


if __name__ == "__main__":
    serve_requests(begin)
