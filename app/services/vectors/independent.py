"""Opens the operator's second model while a report runs: it is loaded when it is needed, and closed afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.components import open_engine
from app.settings import Settings
from steering.pairs import PairSet
from steering.threads import run_in_thread
from steering.workflows.reporting.independent import OtherModelScorer, other_model_scorer

CACHE_MEGABYTES = 128
"""Key-value cache of the second model, which reads one text at a time."""


@asynccontextmanager
async def opened_scorer(
    settings: Settings, concept: str, pairs: PairSet | None
) -> AsyncIterator[OtherModelScorer | None]:
    """Yields the scorer; None where no second model is configured, or nothing says what the concept is."""
    if settings.scorer_model is None or pairs is None:
        yield None
        return
    second = settings.model_copy(
        update={
            "model": settings.scorer_model,
            "model_revision": None,
            "engine": "transformers",
            "compiled": False,
            "max_running": 1,
            "cache_megabytes": CACHE_MEGABYTES,
        }
    )
    engine = await run_in_thread(open_engine, second)
    try:
        yield await other_model_scorer(engine, concept, pairs)
    finally:
        await engine.close()
