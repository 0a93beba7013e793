"""What a graph's `steer` takes beside the residual: the additive bank, and what is to be done after each block."""

from functools import lru_cache
from typing import Any, TypeAlias

import torch

from steering.engine.transformers.execution.compiled.callbacks import Task
from steering.plan.types import Phase
from steering.shapes import Float, Int, Tensor

GraphBank: TypeAlias = tuple[
    Float[Tensor, "phase layer slot d_model"],
    Int[Tensor, "token"],
    Float[Tensor, "layer sum"],
    Int[Tensor, "layer"],
]
"""rows, places, inverse and tasks, as `steering.engine.transformers.execution.kernels.operations.steer` takes them."""


@lru_cache(maxsize=64)
def tasks(layer_count: int, visits: frozenset[int], adds: frozenset[int]) -> Int[Tensor, "layer"]:
    """What is done after each block: a visitor is called, or the bank's rows are added, or nothing. Kept, since one pass after
    another does the same; nobody writes into it."""
    return torch.tensor(
        [Task.VISIT if layer in visits else Task.ADD if layer in adds else Task.NOTHING for layer in range(layer_count)]
    )


def example(layer_count: int, d_model: int, tokens: int) -> GraphBank:
    """To trace with. No two free sizes are equal."""
    return (
        torch.zeros(len(Phase), layer_count, 5, d_model),
        torch.zeros(tokens, dtype=torch.int64),
        torch.zeros(layer_count, 6),
        torch.zeros(layer_count, dtype=torch.int64),
    )


def dynamic_shapes() -> tuple[dict[int, Any], ...]:
    """Slots, tokens and sums are free."""
    free = torch.export.Dim.AUTO
    return {2: free}, {0: free}, {1: free}, {}
