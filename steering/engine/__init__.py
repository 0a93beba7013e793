"""ENGINES, the table of engines by name. Only the engine that is opened is imported."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeAlias

from steering.engine.api import Engine
from steering.engine.options import EngineOptions
from steering.errors import InvalidRequest
from steering.registry import Registry

OpenEngine: TypeAlias = Callable[[EngineOptions], Engine]
"""Loads a model and starts an engine; blocks meanwhile. The engine is complete: its typical norms are measured."""

ENGINES: Registry[OpenEngine] = Registry(
    "engine",
    loaders={
        "transformers": "steering.engine.transformers.factory:open_engine",
        "vllm": "steering.engine.vllm.factory:open_engine",
    },
)


def installed_engines() -> tuple[str, ...]:
    """Returns the engines whose libraries are installed here."""
    return tuple(name for name in ENGINES if name != "vllm" or find_spec("vllm") is not None)


def open_engine(name: str, options: EngineOptions) -> Engine:
    """Opens the engine of that name; blocks for as long as loading takes.

    Raises InvalidRequest for an unknown name, device or dtype and where vLLM, which needs an environment of its own, is not
    installed, ModelLoadFailed, UnsupportedModel, OutOfMemory.
    """
    if name == "vllm" and name not in installed_engines():
        raise InvalidRequest(
            "the engine 'vllm' needs vLLM, which is not installed here: see docs/vllm.md, or `make setup-vllm`",
            param="engine",
        )
    return ENGINES[name](options)
