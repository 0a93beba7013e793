"""What is asked of a CUDA device is done later: a clock is read when it is done."""

import torch


def wait_for(device: str) -> None:
    """Returns when a CUDA device has done what it was asked; on a processor that is always so."""
    if device != "cpu":
        torch.cuda.synchronize()
