"""Makes the memory allocator of the process keep freed memory, so that passes do not ask the system for it again and again."""

import ctypes
import os
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""
UNLIMITED = 2**31 - 1
OWN_SETTINGS = {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"}


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Sets glibc's allocator to keep what is freed, unless the environment sets it otherwise; returns whether it did.

    A pass over prompts allocates and frees tensors of many megabytes. glibc maps each of them anew and returns it, and the
    system clears every page again. Measured on two cores (AMD EPYC, SmolLM2-135M): eight prompts of 1,820 tokens take 11.9
    instead of 13.2 seconds; `MALLOC_MMAP_MAX_=65536` in the environment switches it off. The process keeps the memory
    that its largest pass used. Other C libraries have no such setting: there nothing changes.
    """
    if OWN_SETTINGS & set(environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, UNLIMITED))
