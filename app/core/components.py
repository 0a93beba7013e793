"""Opens the engine and the store that the settings name. Fields of the same name in both are passed on. Tests pass other factories."""

from collections.abc import Callable
from dataclasses import fields

import structlog

from app.core.settings import Settings
from steering.engine import open_engine as open_named
from steering.engine.api import Engine
from steering.engine.options import EngineLimits, EngineOptions
from steering.store import open_store
from steering.store.store import Store

log = structlog.get_logger(__name__)


def _log_step(step: str) -> None:
    log.info("loading", step=step)


def open_engine(settings: Settings, report: Callable[[str], None] = _log_step) -> Engine:
    """Loads the model and starts the engine; blocks meanwhile. Each step is passed to `report`."""
    of_limits, of_options = (
        {field.name: getattr(settings, field.name) for field in fields(kind) if field.name in Settings.model_fields}
        for kind in (EngineLimits, EngineOptions)
    )
    cache_bytes = None if settings.cache_megabytes == "auto" else settings.cache_megabytes << 20
    limits = EngineLimits(**of_limits, cache_bytes=cache_bytes, pretouch_bytes=settings.pretouch_megabytes << 20)
    revision = settings.model_revision
    return open_named(settings.engine, EngineOptions(**of_options, revision=revision, limits=limits, report=report))


async def open_database(settings: Settings) -> Store:
    """Opens the store, migrations included."""
    return await open_store(settings.database)
