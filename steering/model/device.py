"""Where a model is placed and in which numbers it computes, when the operator says "auto"."""

import torch

from steering.errors import InvalidRequest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AMPERE = (8, 0)
"""The first CUDA compute capability that multiplies bfloat16 natively."""


def choose_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the processor. Raises InvalidRequest for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InvalidRequest(f"device must be auto, cpu, cuda or cuda:N, got {device!r}", param="device") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InvalidRequest(
            f"device {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices", param="device"
        )
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the hardware multiplies it natively, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype must be auto or one of {', '.join(DTYPES)}, got {dtype!r}", param="dtype")
    return DTYPES[dtype]


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # absent before torch 2.11
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
