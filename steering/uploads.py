"""Copies numbers from the host to a device without waiting for what the device still computes."""

from typing import Any

import torch

from steering.shapes import Tensor


def uploaded(numbers: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Returns numbers on a device; `torch.tensor(numbers, device=device)` would wait for all that was launched before.
    numbers: a tensor of the host, which stays as it is on a CPU, or what `torch.tensor` takes."""
    host = numbers if isinstance(numbers, torch.Tensor) else torch.tensor(numbers, dtype=dtype)
    # CUDA has copied memory that is not pinned when it returns, so that may be freed; Metal reads it later
    return host.to(device, non_blocking=device.type != "mps")
