"""CONDITIONS, the table of scores of a live residual on a vector. Bounds and hysteresis belong to the plan."""

from steering.conditions.base import Condition
from steering.conditions.cosine import Cosine
from steering.conditions.probe import Probe
from steering.conditions.projection import Projection
from steering.registry import Registry

CONDITIONS: Registry[type[Condition]] = Registry(
    "condition", {"projection": Projection, "cosine": Cosine, "probe": Probe}
)

__all__ = ["CONDITIONS", "Condition"]
