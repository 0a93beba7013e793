"""Compiles blocks that are steered as vLLM's layers are, and compares them with what they compute uncompiled; run by test_static_edits.py."""

import asyncio
from typing import Any

import torch
from torch import nn

from steering.injection.injector import Injector
from steering.injection.slots import Room, Slots
from steering.injection.static import COLUMNS, EDITS, StaticEdits
from steering.plan.types import DoseGuard
from tests.plans import plan_for, vectors_for
from tests.steering.injection.passes import INFO, begun, row_of

PLANS: list[list[dict[str, Any]]] = [
    [{"vector": "alpha", "layers": "all", "strength": 2.0}, {"vector": "beta", "layers": [1]}],
    [{"vector": "beta", "layers": [0, 2], "unit": "relative", "strength": 0.3}],
    [{"vector": "alpha", "operation": "ablate", "layers": "all"}],
    [{"vector": "alpha", "operation": "clamp", "low": -0.1, "high": 0.1, "layers": [1, 2]}],
]


class Block(nn.Module):
    """Returns a stream and a residual, as vLLM's layers do, and steers the stream."""

    def __init__(self, edits: StaticEdits, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(INFO.d_model, INFO.d_model, dtype=dtype)
        self.edits, self.layer = edits, layer

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes a block without attention."""
        residual = hidden + residual
        return self.edits(self.layer, self.linear(residual), residual), residual


async def compare(dtype: torch.dtype) -> None:
    """One graph for every number of tokens and everything that acts: rows of distinct plans, and none."""
    vectors, room = vectors_for(INFO), Room(slots=8, rows=64, edits=EDITS, columns=COLUMNS, fixed=True)
    injector = Injector(Slots(INFO.layer_count, INFO.d_model, torch.device("cpu"), room=room))
    edits = StaticEdits(injector.slots, range(INFO.layer_count), 64)
    layers = [Block(edits, layer, dtype) for layer in range(INFO.layer_count)]

    def run(hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for layer in layers:
            hidden, residual = layer(hidden, residual)
        return hidden, residual

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    rows = [row_of(await plan_for(items, vectors, INFO, DoseGuard(bound=0.3, action="clamp")), 6, 9) for items in PLANS]
    for row in rows:
        injector.admit(row)
    with torch.no_grad():
        for chosen in ([(rows[0], 6), (rows[1], 6)], [(row, 3) for row in rows], []):
            tokens = sum(length for _, length in chosen) or 5
            arriving = [torch.randn(tokens, INFO.d_model).to(dtype) for _ in range(2)]
            found = []
            for function in (run, compiled):
                edits.clear(tokens)
                if chosen:
                    injection, _, _ = begun(injector, chosen)
                    edits.begin(injection)
                noted = (edits.edits, edits.changes, edits.scaled)
                found.append([*function(*arriving), *(one[:, :tokens].clone() for one in noted)])
            for here, there in zip(*found, strict=True):
                torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)
            assert bool(found[0][3].any()) == bool(chosen), "changes were measured where something acts"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


if __name__ == "__main__":
    for one in (torch.float32, torch.bfloat16):
        asyncio.run(compare(one))
