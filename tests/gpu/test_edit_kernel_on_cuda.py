"""On a CUDA device the Triton kernel of edits does what `LayerEdits.apply` does, and engines use it."""

from pathlib import Path

import pytest
import torch

from steering.engine.options import EngineOptions
from steering.engine.transformers.factory import open_engine
from steering.injection import fused

DEVICE = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d_model", [96, 576, 4096, 8192, 16384])
def test_it_differs_by_rounding_in_every_width_and_dtype(d_model: int, dtype: torch.dtype) -> None:
    assert fused.has_kernel(DEVICE, d_model, dtype)


def test_a_captured_launch_reads_what_the_tables_hold_at_a_replay() -> None:
    vectors, numbers = (
        torch.zeros(2, 96, device=DEVICE),
        torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 1.0]], device=DEVICE),
    )
    vectors[1, 0] = 1.0
    codes, rows = (
        torch.zeros(2, 5, dtype=torch.int64, device=DEVICE),
        torch.ones(1, 1, 1, dtype=torch.int64, device=DEVICE),
    )
    noted = torch.zeros(1, 4, 1, device=DEVICE), torch.zeros(1, 4, device=DEVICE), torch.zeros(1, 4, device=DEVICE)
    weights, left = torch.zeros(4, 1, device=DEVICE), torch.full((4,), torch.inf, device=DEVICE)
    slots = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    residual, graph = torch.ones(4, 96, device=DEVICE), torch.cuda.CUDAGraph()
    given = residual, vectors, numbers, codes, rows, slots, weights, left, *noted, 0, 0
    fused.edit(*given)  # compiles it
    with torch.cuda.graph(graph):
        after = fused.edit(*given)
    weights[1] = 0.5
    graph.replay()
    assert after[:, 0].tolist() == [1.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("kernels", [False, True])
async def test_engines_use_it_unless_kernels_are_switched_off(kernels: bool, tiny_folder: Path) -> None:
    engine = open_engine(EngineOptions(str(tiny_folder), tiny_folder, device="cuda", kernels=kernels))
    try:
        assert engine._runner.injector.slots.fused == kernels
    finally:
        await engine.close()
