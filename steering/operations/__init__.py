"""OPERATIONS, the table of what can be done to a residual vector."""

from steering.operations.ablate import Ablate
from steering.operations.add import Add
from steering.operations.base import Operation
from steering.operations.clamp import Clamp
from steering.operations.replace import Replace
from steering.operations.rotate import Rotate
from steering.registry import Registry

OPERATIONS: Registry[type[Operation]] = Registry(
    "operation",
    {"add": Add, "ablate": Ablate, "clamp": Clamp, "rotate": Rotate, "replace": Replace},
)

__all__ = ["OPERATIONS", "Operation"]
