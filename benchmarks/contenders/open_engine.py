"""Our engine, opened as the server opens it, in bfloat16; nothing ends an answer early."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any, cast

import torch

from steering.engine.api import Engine, GenerationRequest, SamplingParams
from steering.engine.transformers.execution.compiled.passes import KINDS
from steering.engine.transformers.factory import EngineChoice, open_engine
from steering.model.conversion import converted
from steering.model.embedded import embedded_gguf

DTYPE = "bfloat16"
LONGEST_COMPILATION = 1500.0


def cache_dir() -> Path:
    """Where converted weights and compiled steps are kept."""
    return Path(os.environ.get("STEERING_CACHE_DIR") or Path(".cache") / "models").resolve()


def model_folder() -> Path:
    """The embedded model as a Hugging Face folder, which every peer reads."""
    return converted(embedded_gguf(), torch.bfloat16, cache_dir(), print)


def open_endless(source: str, device: str) -> Engine:
    """No token ends an answer, so that every side writes exactly as many tokens as it was asked."""
    engine = open_engine(EngineChoice(source, cache_dir(), device=device, dtype=DTYPE))
    cast(Any, engine)._loop._eos_ids = frozenset()  # no request over HTTP can ask for this, so it is done underneath
    return engine


async def until_compiled(engine: Engine) -> None:
    """Returns when both kinds of passes run compiled, which they are between two passes: so passes are made. At once on a CUDA
    device, where decode passes are captured as they come.

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
