"""What this CPU supports, and which kernels are used on it."""

import platform
from functools import cache
from pathlib import Path

import torch


@cache
def has_avx512_bf16() -> bool:
    """Whether the CPU has bfloat16 dot products in 512-bit registers (AVX512_BF16)."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


@cache
def has_amx_bf16() -> bool:
    """Whether the CPU has AMX tiles, with which oneDNN's linear layers are faster than our kernel."""
    return torch.cpu._is_amx_tile_supported()


def compiler_flags() -> list[str]:
    """Returns the compiler flags of the kernels on this CPU, which has AVX512_BF16."""
    extensions = ["avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16"]
    if has_amx_bf16():
        extensions += ["amx-tile", "amx-bf16"]
    return [*(f"-m{extension}" for extension in extensions), "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"]


@cache
def cpu_features() -> str:
    """Describes the CPU by model and sorted feature flags: AOTInductor compiles with -march=native, so its artefacts run
    only on a CPU of the same description."""
    facts = {platform.machine(), torch.backends.cpu.get_cpu_capability()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        first = cpuinfo.read_text().split("\n\n", maxsplit=1)[0]
        fields = dict(line.split(":", maxsplit=1) for line in first.splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        facts.update(
            f"{key}={named[key]}" for key in ("vendor_id", "cpu family", "model", "model name") if key in named
        )
        facts.update(named.get("flags", named.get("Features", "")).split())
    return " ".join(sorted(facts))


def supports_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether our kernels take tensors of this dtype and device: bfloat16, on a CPU with AVX512_BF16."""
    return dtype == torch.bfloat16 and device.type == "cpu" and has_avx512_bf16()


def supports_packed_linear(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether linear layers use `packed_linear`: in bfloat16, without AMX. Measured on two cores of an AMD EPYC, all linear
    layers of SmolLM2-135M: 4.2 / 4.6 / 9.9 ms for 1 / 8 / 32 rows; oneDNN with packed weights 8.5 / 9.7 / 16.3."""
    return supports_kernels(dtype, device) and not has_amx_bf16()
