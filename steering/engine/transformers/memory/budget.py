"""How much memory the key-value cache takes when the operator leaves it open."""

from collections.abc import Callable

import torch
from torch import nn

from steering.model.device import measure_memory

CPU_SHARE, CPU_MOST = 0.25, 4 << 30
"""Of the memory that is free. It is taken page by page, as blocks are used for the first time."""
CUDA_SHARE = 0.9
"""Of the memory that is free on a device after a worst pass: allocators and graphs of libraries take some too."""


def cache_bytes(model: nn.Module, device: torch.device, worst_pass: Callable[[], None]) -> int:
    """Returns the bytes for keys and values, measured once the weights are loaded.

    worst_pass: computes as many tokens as a pass may have. It is run on a CUDA device, where its memory is measured.
    """
    if device.type != "cuda":
        return int(min(measure_memory(model, device).free * CPU_SHARE, CPU_MOST))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    worst_pass()
    peak = torch.cuda.max_memory_allocated(device) - before
    return max(int((measure_memory(model, device).free - peak) * CUDA_SHARE), 0)
