"""CONDITIONS, the table of how a live residual is scored on a vector. What follows from a score is the plan's affair."""

from steering.conditions.base import Condition
from steering.conditions.cosine import Cosine
from steering.conditions.probe import Probe
from steering.conditions.projection import Projection
from steering.registry import Registry

CONDITIONS: Registry[type[Condition]] = Registry(
    "condition", {"projection": Projection, "cosine": Cosine, "probe": Probe}
)

__all__ = ["CONDITIONS", "Condition"]
