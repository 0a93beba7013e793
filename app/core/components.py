"""Opens the engine and the store that the settings name. Tests pass other factories to create_app."""

from collections.abc import Callable

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
    options = EngineOptions(
        model=settings.model,
        cache_dir=settings.cache_dir,
        revision=settings.model_revision,
        device=settings.device,
        dtype=settings.dtype,
        device_map=settings.device_map,
        limits=EngineLimits(
            max_running=settings.max_running,
            contended_running=settings.contended_running,
            max_waiting=settings.max_waiting,
            prefill_tokens=settings.prefill_tokens,
            cache_bytes=None if settings.cache_megabytes == "auto" else settings.cache_megabytes << 20,
            pretouch_bytes=settings.pretouch_megabytes << 20,
            adaptive_threads=settings.adaptive_threads,
            share_prefixes=settings.share_prefixes,
        ),
        compiled=settings.compiled,
        report=report,
        kernels=settings.kernels,
        self_test=settings.self_test,
        vllm_untested=settings.vllm_untested,
        tensor_parallel_size=settings.tensor_parallel_size,
        pipeline_parallel_size=settings.pipeline_parallel_size,
    )
    return open_named(settings.engine, options)


async def open_database(settings: Settings) -> Store:
    """Opens the store, migrations included."""
    return await open_store(settings.database)
