"""SecondModel: the operator's second model (STEERING_SCORER_MODEL), which is in memory once, and only while jobs use it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.core.components import open_engine
from app.core.process_settings import return_freed_memory
from app.core.settings import Settings
from steering.engine.api import Engine
from steering.threads import run_in_thread

CACHE_MEGABYTES = 128
"""Key-value cache of the second model, which reads one text at a time."""


class SecondModel:
    """Loads the second model for the first of the jobs that use it at a time, and closes it after the last.

    load: opens an engine, in a thread.
    """

    def __init__(self, settings: Settings, load: Callable[[Settings], Engine] = open_engine) -> None:
        self._settings, self._load = settings, load
        self._changing = asyncio.Lock()  # held while the model is loaded or closed
        self._engine: Engine | None = None
        self._users = 0

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Engine]:
        """Yields the second model, which is configured. Raises what `load` raises. A load cannot be stopped: where all callers are
        cancelled meanwhile, the last one waits for its end, and what it returns is closed."""
        self._users += 1
        try:
            yield await asyncio.shield(asyncio.ensure_future(self._open()))
        finally:
            self._users -= 1
            if not self._users:
                await asyncio.shield(asyncio.ensure_future(self._close()))

    async def _open(self) -> Engine:
        async with self._changing:
            if self._engine is None:
                self._engine = await run_in_thread(self._load, _options(self._settings))
            return self._engine

    async def _close(self) -> None:
        """Closes the model unless a job has come for it meanwhile."""
        async with self._changing:
            if self._users or self._engine is None:
                return
            engine, self._engine = self._engine, None
            await engine.close()
            await run_in_thread(return_freed_memory)


def _options(settings: Settings) -> Settings:
    """Returns the settings of the second model's engine: without what is of the first model's files and engine."""
    return settings.model_copy(
        update={
            "model": settings.scorer_model,
            "model_revision": None,
            "engine": "transformers",
            "compiled": False,
            "weights": "auto",
            "quantization": None,
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "max_running": 1,
            "cache_megabytes": CACHE_MEGABYTES,
            "pretouch_megabytes": 0,
        }
    )
