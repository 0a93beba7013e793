"""vLLM's CPU build, compiled and unsteered, run by the interpreter of its own environment (make bench-vllm-setup)."""

import asyncio
import time
from collections.abc import Coroutine
from itertools import count
from typing import Any

import torch
import vllm
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from benchmarks.contenders.protocol import serve_requests
from benchmarks.stream_timing import load_metrics, stream_metrics
from benchmarks.workload import prompts

WARM_TOKENS = 4


class VllmPeer:
    """Runs requests on one engine without a server or network. Prompts are token ids; prefix caching is off."""

    def __init__(self, folder: str, rows: int, length: int, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._ids = map(str, count())
        self._warm_rows: set[int] = set()
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=folder,
                dtype="bfloat16",
                max_model_len=length,
                max_num_seqs=rows,
                enable_prefix_caching=False,
                enforce_eager=False,
            )
        )

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Generates from all prompts at once, greedily; see `stream_metrics`."""
        return self._run(self._generate(prompts, new_tokens))

    def mixed_load(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """Sends each request at its time; see `load_metrics`."""
        return self._run(self._mixed_load(requests))

    def _run(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        return self._runner.run(work)

    async def _generate(self, rows: list[list[int]], new_tokens: int) -> dict[str, Any]:
        await self._warm(len(rows))
        start = time.perf_counter()
        arrivals = await self._together(rows, new_tokens)
        return stream_metrics(start, arrivals)

    async def _mixed_load(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        await self._warm(8)
        start = time.perf_counter()

        async def send(request: dict[str, Any]) -> list[float]:
            await asyncio.sleep(max(0.0, start + request["at"] - time.perf_counter()))
            return await self._stream(request["prompt"], request["new_tokens"])

        arrivals = await asyncio.gather(*map(send, requests))
        return load_metrics([start + request["at"] for request in requests], arrivals)

    async def _warm(self, rows: int) -> None:
        """Runs briefly before every measurement, and at full length at the first batch of a size."""
        if rows not in self._warm_rows:
            self._warm_rows.add(rows)
            await self._together(prompts(rows, 32, -2), 64)
        await self._together(prompts(rows, 32, -1), WARM_TOKENS)

    async def _together(self, rows: list[list[int]], new_tokens: int) -> list[list[float]]:
        return await asyncio.gather(*(self._stream(row, new_tokens) for row in rows))

    async def _stream(self, prompt: list[int], new_tokens: int) -> list[float]:
        """Returns the arrival times of the tokens of one request."""
        sampling = SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        times: list[float] = []
        async for output in self._engine.generate({"prompt_token_ids": prompt}, sampling, next(self._ids)):
            times += [time.perf_counter()] * len(output.outputs[0].token_ids)
        assert len(times) == new_tokens
        return times


def begin(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Starts the engine over a model folder, which compiles it."""
    runner = asyncio.Runner()

    async def open_peer() -> VllmPeer:  # the engine belongs to the running loop
        return VllmPeer(options["folder"], options["rows"], options["length"], runner)

    peer = runner.run(open_peer())
    handlers = {"generate": peer.generate, "mixed_load": peer.mixed_load}
    return handlers, {"vllm": vllm.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    serve_requests(begin)
