"""Opens our engine as the server does, in bfloat16, with end-of-sequence tokens ignored."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any, cast

import torch

from steering.engine import open_engine
from steering.engine.api import Engine, GenerationRequest, SamplingParams
from steering.engine.options import EngineOptions
from steering.engine.transformers.execution.compiled.passes import KINDS
from steering.model.conversion import converted
from steering.model.embedded import embedded_gguf

DTYPE = "bfloat16"
LONGEST_COMPILATION = 1500.0


def cache_dir() -> Path:
    """Returns the folder of converted weights and compiled graphs."""
    return Path(os.environ.get("STEERING_CACHE_DIR") or Path(".cache") / "models").resolve()


def model_folder() -> Path:
    """Returns the embedded model as a Hugging Face folder, which every peer reads."""
    return converted(embedded_gguf(), torch.bfloat16, cache_dir(), print)


def open_endless(source: str, device: str) -> Engine:
    """Opens an engine without end-of-sequence tokens, so that every contender generates the requested number of tokens."""
    engine = open_engine("transformers", EngineOptions(source, cache_dir(), device=device, dtype=DTYPE))
    cast(Any, engine)._loop._eos_ids = frozenset()  # the HTTP API has no such option
    return engine


async def until_compiled(engine: Engine) -> None:
    """Returns when both kinds of passes run compiled. On a CUDA device it returns at once. Graphs are installed between two
    passes, so it generates while it waits.

    Raises TimeoutError.
    """
    if not engine.info.device.startswith("cpu"):
        return
    deadline = time.monotonic() + LONGEST_COMPILATION
    request = GenerationRequest((1,), SamplingParams(max_tokens=2))
    while not set(KINDS) <= set(engine.stats().compiled):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the decode step was not compiled in time; see {cache_dir() / 'compile.log'}")
        async for _ in engine.generate(request):
            pass
        await asyncio.sleep(0.5)
