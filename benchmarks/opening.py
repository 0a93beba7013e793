"""Our engine over the embedded model, opened as the benchmarks want it: bfloat16, compiled, and nothing ends early."""

import asyncio
import os
import time
from pathlib import Path

from steering.engine.base import GenerationRequest, SamplingParams
from steering.engine.compilation import KINDS, CompileRequest
from steering.engine.limits import EngineLimits
from steering.engine.transformers_engine import TransformersEngine
from steering.model.loading import load

DTYPE = "bfloat16"
ROWS = 64
LONGEST_COMPILATION = 1500.0


def cache_dir() -> Path:
    """Where converted weights and compiled steps are kept."""
    return Path(os.environ.get("STEERING_CACHE_DIR") or Path(".cache") / "models").resolve()


def open_compiled(rows: int = ROWS) -> TransformersEngine:
    """An engine whose decode steps run compiled. Raises TimeoutError when they do not become ready.

    No token ends an answer, so that every side writes exactly as many tokens as it was asked.
    """
    where = cache_dir()
    loaded = load(None, cache_dir=where, device="cpu", dtype=DTYPE)
    loaded.tokenizer.eos_ids = frozenset()
    return TransformersEngine(loaded, EngineLimits(max_running=rows), CompileRequest(None, None, DTYPE, where))


async def until_compiled(engine: TransformersEngine) -> None:
    """Returns when both kinds of steps run compiled. Steps are taken over between passes, so passes are made."""
    deadline = time.monotonic() + LONGEST_COMPILATION
    request = GenerationRequest((1,), SamplingParams(max_tokens=2))
    while not set(KINDS) <= set(engine.stats().compiled):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the decode step was not compiled in time; see {cache_dir() / 'compile.log'}")
        async for _ in engine.generate(request):
            pass
        await asyncio.sleep(0.5)
