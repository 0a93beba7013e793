"""CONDITIONS, the table of scores of a live residual on a vector. Bounds and hysteresis belong to the plan."""

from steering.conditions.builtin import Condition, Cosine, Probe, Projection
from steering.registry import Registry

CONDITIONS: Registry[type[Condition]] = Registry(
    "condition", {"projection": Projection, "cosine": Cosine, "probe": Probe}
)

__all__ = ["CONDITIONS", "Condition"]
