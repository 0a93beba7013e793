"""Opens our engine for measurements: as the server does, or in bfloat16 with end-of-sequence tokens ignored."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from steering.engine import open_engine
from steering.engine.api import Engine
from steering.engine.options import EngineLimits, EngineOptions
from steering.model.conversion import converted
from steering.model.embedded import embedded_gguf
from steering.threads import disable_intra_op_threads

DTYPE = "bfloat16"
LONGEST_COMPILATION = 1500.0
CACHE_BYTES = 512 << 20
"""Key-value cache of each model."""


def cache_dir() -> Path:
    """Returns the folder of converted weights and compiled graphs."""
    return Path(os.environ.get("STEERING_CACHE_DIR") or Path(".cache") / "models").resolve()


def model_folder() -> Path:
    """Returns the embedded model as a Hugging Face folder, which every peer reads."""
    return converted(embedded_gguf(), torch.bfloat16, cache_dir(), print)


def open_endless(
    source: str, device: str, *, engine: str = "transformers", compiled: bool = True, **limits: Any
) -> Engine:
    """Opens an engine without end-of-sequence tokens, so that every contender generates the requested number of tokens.

    compiled: whether passes on a CPU are. limits: fields of EngineLimits.
    """
    options = EngineOptions(source, cache_dir(), device=device, dtype=DTYPE, limits=EngineLimits(**limits))
    found = open_engine(engine, options if compiled else replace(options, compiled=False))
    if engine == "transformers":
        cast(Any, found)._loop._answers._eos_ids = frozenset()  # the HTTP API has no such option
    return found


@asynccontextmanager
async def opened(*models: str, compiled: bool = False) -> AsyncIterator[list[Engine]]:
    """Opens engines with models (names, folders, .gguf files) as the server does, for the length of a block."""
    disable_intra_op_threads()  # tensor operations of this thread would slow the engines down; see steering/threads.py
    limits = EngineLimits(cache_bytes=CACHE_BYTES)
    engines = [
        open_engine("transformers", EngineOptions(one, cache_dir(), compiled=compiled, limits=limits)) for one in models
    ]
    try:
        yield engines
    finally:
        for engine in engines:
            await engine.close()


async def until_compiled(engine: Engine) -> None:
    """Returns when passes run compiled; at once on other devices than CPUs. Raises TimeoutError."""
    if not engine.info.device.startswith("cpu"):
        return
    deadline = time.monotonic() + LONGEST_COMPILATION
    while engine.stats().executor.startswith("eager"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"passes were not compiled in time; see {cache_dir() / 'compile.log'}")
        await asyncio.sleep(0.5)
