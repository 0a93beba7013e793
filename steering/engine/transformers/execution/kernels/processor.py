"""What this processor can do, and which of our kernels are worth their while on it."""

from functools import cache

import torch

from steering.shapes import Tensor

FLAGS = (
    *(f"-m{extension}" for extension in ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16")),
    "-DCPU_CAPABILITY=AVX512",
    "-DCPU_CAPABILITY_AVX512",
)
"""For the compiler, where `has_avx512_bf16`."""
HALVES = 32
"""Heads are read a register at a time: their width is a multiple of this many bfloat16 numbers."""


@cache
def has_avx512_bf16() -> bool:
    """Whether it has dot products of bfloat16 in registers of 512 bits (AVX512_BF16)."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


@cache
def has_amx_bf16() -> bool:
    """Whether it has AMX, with which the library's own linear layers are fast."""
    return torch.cpu._is_amx_tile_supported()


def packs_linears(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether linear layers run by `linears`: in bfloat16, without matrix units. Measured on two cores of an AMD EPYC,
    all of SmolLM2-135M: 4.2 / 4.6 / 9.9 ms for 1 / 8 / 32 rows; oneDNN with packed weights 8.5 / 9.7 / 16.3."""
    return computes_here(dtype, device) and not has_amx_bf16()


def attends_slots(query: Tensor, value: Tensor) -> bool:
    """Whether attention over slots runs by `attend_rows` and `attend_segments`: bfloat16 heads of fitting widths."""
    width = query.shape[-1]
    return computes_here(query.dtype, query.device) and width % HALVES == 0 and value.shape[-1] == width


def computes_here(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether our kernels take such tensors: they are for bfloat16, on this processor."""
    return dtype == torch.bfloat16 and device.type == "cpu" and has_avx512_bf16()
