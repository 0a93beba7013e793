"""open_engine: from a name in the table and a model's name to an engine that is ready. Blocks for as long as loading takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from steering.engine import ENGINES
from steering.engine.api import Engine
from steering.engine.transformers.execution.compiled.compilation import CompileRequest
from steering.engine.transformers.limits import EngineLimits
from steering.model.loading import load
from steering.threads import call_in_thread

COMPILED_PARAMETERS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What an operator chose. model: see `steering.model.loading.load`. compiled: whether decoding and the reading of prompts
    are compiled in the background; the steps then hold weights of their own, so only models up to COMPILED_PARAMETERS are."""

    model: str
    cache_dir: Path
    engine: str = "transformers"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    device_map: Literal["auto"] | None = None
    limits: EngineLimits = field(default_factory=EngineLimits)
    compiled: bool = True


def open_engine(choice: EngineChoice, report: Callable[[str], None] = lambda _line: None) -> Engine:
    """`report` is told each step in a line. Raises ModelLoadFailed, UnsupportedModel, OutOfMemory, InvalidRequest."""
    make = ENGINES[choice.engine]
    loaded = call_in_thread(
        lambda: load(
            choice.model,
            cache_dir=choice.cache_dir,
            device=choice.device,
            dtype=choice.dtype,
            device_map=choice.device_map,
            revision=choice.revision,
            report=report,
        )
    )
    request = CompileRequest(choice.model, choice.revision, loaded.info.dtype, choice.cache_dir)
    wanted = choice.compiled and loaded.info.parameter_count <= COMPILED_PARAMETERS
    return cast(Engine, make(loaded, choice.limits, request if wanted else None))
