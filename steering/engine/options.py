"""What an operator chooses when an engine is opened."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds on rows, positions and memory.

    max_running: rows at once. max_waiting: live requests in the queue before `overloaded`. prefill_tokens: prompt
    positions of a pass while rows decode, whose streams wait that long. idle_prefill_tokens: the same while none does.
    cache_bytes: memory for keys and values. prefix_bytes: memory for shared prompts, 0 for none.
    """

    max_running: int = 64
    max_waiting: int = 256
    prefill_tokens: int = 256
    idle_prefill_tokens: int = 2048
    cache_bytes: int = 4 << 30
    prefix_bytes: int = 512 << 20


def _report_nothing(_step: str) -> None:
    """Drops a line of progress."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Everything an entry of ENGINES needs to open itself.

    model: a name, folder, file or hub id; an engine may read it as it likes. cache_dir: where converted and compiled
    files are kept. device, dtype: "auto" or a name. device_map: "auto" spreads the model over devices where an engine
    can do that. compiled: whether passes are compiled in the background, "auto": if the model is small. kernels: whether
    compiled passes use our C++ kernels where the CPU supports them. report: receives each step of loading.
    """

    model: str
    cache_dir: Path
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    device_map: Literal["auto"] | None = None
    compiled: bool | Literal["auto"] = "auto"
    kernels: bool = True
    limits: EngineLimits = field(default_factory=EngineLimits)
    report: Callable[[str], None] = _report_nothing
