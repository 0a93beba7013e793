"""Opens the operator's second model while a job runs: it is loaded when it is needed, and closed afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.components import open_engine
from app.process_settings import return_freed_memory
from app.settings import Settings
from steering.concepts.loader import load_concept
from steering.engine.api import Engine
from steering.errors import UnsupportedParameter
from steering.threads import run_in_thread
from steering.workflows.reporting.independent import OtherModelScorer, other_model_scorer

CACHE_MEGABYTES = 128
"""Key-value cache of the second model, which reads one text at a time."""


def check_second_model(settings: Settings) -> None:
    """Raises UnsupportedParameter where the operator configured none."""
    if settings.scorer_model is None:
        raise UnsupportedParameter(
            "this needs a second model, and the server has none: the operator sets STEERING_SCORER_MODEL"
        )


@asynccontextmanager
async def opened_second_model(
    settings: Settings, load: Callable[[Settings], Engine] = open_engine
) -> AsyncIterator[Engine]:
    """Yields the second model, which `check_second_model` has found configured. Raises what `load` raises.

    A cancelled caller waits for the end of the load, which cannot be stopped, so that what it returns is closed, and
    cancelled jobs do not load several at once.
    """
    second = settings.model_copy(
        update={
            "model": settings.scorer_model,
            "model_revision": None,
            "engine": "transformers",
            "compiled": False,
            "max_running": 1,
            "cache_megabytes": CACHE_MEGABYTES,
            "pretouch_megabytes": 0,
        }
    )
    loading = asyncio.ensure_future(run_in_thread(load, second))
    try:
        yield await asyncio.shield(loading)
    finally:
        await asyncio.wait({loading})
        if loading.exception() is None:
            await loading.result().close()
            await run_in_thread(return_freed_memory)


@asynccontextmanager
async def opened_scorer(settings: Settings, concept: str | None) -> AsyncIterator[OtherModelScorer | None]:
    """Yields the scorer of a starter concept; None where no second model is configured, or the concept is not known."""
    if settings.scorer_model is None or concept is None:
        yield None
        return
    async with opened_second_model(settings) as engine:
        yield await other_model_scorer(engine, concept, load_concept(concept))
