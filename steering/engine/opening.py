"""open_engine: from a name in the table and a model's name to an engine that is ready. Blocks for as long as loading takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from steering.engine import ENGINES
from steering.engine.base import Engine
from steering.engine.scheduler import EngineLimits
from steering.model.loading import load


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What an operator chose. model: see `steering.model.loading.load`. max_running, max_waiting: rows, and the queue."""

    model: str
    cache_dir: Path
    engine: str = "transformers"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    device_map: Literal["auto"] | None = None
    max_running: int = 64
    max_waiting: int = 256


def open_engine(choice: EngineChoice, report: Callable[[str], None] = lambda _line: None) -> Engine:
    """`report` is told each step in a line. Raises ModelLoadFailed, UnsupportedModel, OutOfMemory, InvalidRequest."""
    make = ENGINES[choice.engine]
    loaded = load(
        choice.model,
        cache_dir=choice.cache_dir,
        device=choice.device,
        dtype=choice.dtype,
        device_map=choice.device_map,
        revision=choice.revision,
        report=report,
    )
    return cast(Engine, make(loaded, EngineLimits(max_running=choice.max_running, max_waiting=choice.max_waiting)))
