"""Many requests, one batch. ENGINES is the table of engines; each is loaded only when asked."""

from typing import Any

from steering.registry import Registry

ENGINES: Registry[Any] = Registry(
    "engine",
    {"transformers": "steering.engine.transformers.engine:TransformersEngine"},
)
