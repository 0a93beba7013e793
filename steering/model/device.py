"""Chooses the device and dtype of a model, and measures the free memory of the device.

driver, in all functions: what knows the devices of a machine, as torch does.
"""

import ctypes
import sys
from functools import cache
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import psutil
import torch

from steering.errors import InvalidRequest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AMPERE = (8, 0)
"""The first CUDA compute capability with native bfloat16 matrix products."""
CGROUP = Path("/sys/fs/cgroup")
MADV_PAGEOUT = 21
"""Of madvise(2), since Linux 5.4: reclaim pages. Unlike MADV_DONTNEED it never loses what no file holds."""


def choose_device(device: str, driver: Any = torch) -> torch.device:
    """Returns the device of a name; "auto": CUDA, else a GPU of Apple, else the CPU. Raises InvalidRequest."""
    if device == "auto":
        if driver.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if driver.backends.mps.is_available() else "cpu")
    allowed = f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InvalidRequest(allowed, param="device") from None
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise InvalidRequest(f"{allowed}: {chosen.type} devices are not supported", param="device")
    if chosen.type == "mps" and (not driver.backends.mps.is_available() or chosen.index):
        raise InvalidRequest(f"device {device!r} does not exist: torch finds no such GPU of Apple's", param="device")
    count = driver.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise InvalidRequest(f"device {device!r} does not exist: this machine has {count} CUDA devices", param="device")
    return chosen


def choose_dtype(dtype: str, device: torch.device, *, kernels: bool = False, driver: Any = torch) -> torch.dtype:
    """Returns the dtype of that name; "auto" is bfloat16 where it is multiplied fast, else float32. kernels: whether
    the engine's own kernels run, which multiply bfloat16 on every CPU with AVX2 and read half the bytes of float32."""
    if dtype == "auto":
        fast = has_native_bfloat16(device, driver) or (kernels and needs_kernels(torch.bfloat16, device))
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype must be auto or one of {', '.join(DTYPES)}, got {dtype!r}", param="dtype")
    if dtype == "bfloat16" and device.type == "mps" and not has_native_bfloat16(device, driver):
        raise InvalidRequest("bfloat16 on Apple's GPUs needs macOS 14: choose float16 or float32", param="dtype")
    return DTYPES[dtype]


def has_avx2() -> bool:
    """Whether the CPU has AVX2 and FMA, for which our kernels are built."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@cache
def has_avx512_bf16() -> bool:
    """Whether the CPU has bfloat16 dot products in 512-bit registers (AVX512_BF16)."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


@cache
def has_amx_bf16() -> bool:
    """Whether the CPU has AMX tiles, which multiply bfloat16."""
    return torch.cpu._is_amx_tile_supported()


def has_native_bfloat16(device: torch.device, driver: Any = torch) -> bool:
    """Whether the hardware multiplies bfloat16 itself, so that torch's own operations are fast."""
    if device.type == "cuda":
        return bool(driver.cuda.get_device_capability(device) >= AMPERE)
    if device.type == "mps":
        return bool(driver.backends.mps.is_macos_or_newer(14, 0))
    return device.type == "cpu" and (has_avx512_bf16() or has_amx_bf16())


def takes_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether our kernels take tensors of this dtype and device, and multiply by packed copies of the linear layers' weights."""
    return dtype == torch.bfloat16 and device.type == "cpu" and has_avx2()


def needs_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch's own operations are slow where our kernels run: the CPU has no instructions for bfloat16."""
    return takes_kernels(dtype, device) and not has_native_bfloat16(device)


def free_memory(device: torch.device, driver: Any = torch) -> int:
    """Returns the bytes that this process can still allocate on a device."""
    if device.type == "cuda":
        driver.cuda.synchronize(device)
        free_unused_memory(device, driver)
        return int(driver.cuda.mem_get_info(device)[0])
    available: int = psutil.virtual_memory().available
    if device.type == "mps":  # shares the memory of the CPU
        free_unused_memory(device, driver)
        recommended: int = driver.mps.recommended_max_memory() - driver.mps.driver_allocated_memory()
        return min(available, max(recommended, 0))
    container = container_memory(CGROUP)  # may be less than the machine has
    return available if container is None else min(available, container)


def page_out(weight: torch.Tensor) -> None:
    """Lets go of a weight's memory that is mapped from a file, on Linux; it is read again when needed."""
    if sys.platform != "linux" or weight.device.type != "cpu":
        return
    begin, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
    begin, end = -(-begin // PAGESIZE) * PAGESIZE, end // PAGESIZE * PAGESIZE
    # the pages that it has for itself; a kernel that does not know the advice refuses it, which changes nothing
    if end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_PAGEOUT)


def free_unused_memory(device: torch.device, driver: Any = torch) -> None:
    """Gives the device back what torch's allocator keeps of its memory."""
    if device.type == "cuda":
        driver.cuda.empty_cache()
    elif device.type == "mps":
        driver.mps.synchronize()
        driver.mps.empty_cache()


def container_memory(folder: Path) -> int | None:
    """Returns the free bytes of this process's control group, droppable file pages included; None without a limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
