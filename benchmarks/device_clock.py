"""Synchronizes with a CUDA device, so that the clock is read after its work is done."""

import torch


def wait_for(device: str) -> None:
    """Waits for the work of a CUDA device; returns at once on a CPU."""
    if device != "cpu":
        torch.cuda.synchronize()
