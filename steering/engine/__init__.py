"""ENGINES, the table of engines by name. Only the engine that is opened is imported."""

from collections.abc import Callable
from typing import TypeAlias

from steering.engine.api import Engine
from steering.engine.options import EngineOptions
from steering.registry import Registry

OpenEngine: TypeAlias = Callable[[EngineOptions], Engine]
"""Loads a model and starts an engine; blocks meanwhile. The engine is complete: its typical norms are measured."""


def _transformers() -> OpenEngine:
    from steering.engine.transformers.factory import open_engine as opened  # noqa: PLC0415 - no other engine needs it

    return opened


ENGINES: Registry[OpenEngine] = Registry("engine", loaders={"transformers": _transformers})


def open_engine(name: str, options: EngineOptions) -> Engine:
    """Opens the engine of that name; blocks for as long as loading takes.

    Raises InvalidRequest for an unknown name, device or dtype, ModelLoadFailed, UnsupportedModel, OutOfMemory.
    """
    return ENGINES[name](options)
