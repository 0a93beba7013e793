"""What a process that computes with torch sets before torch is loaded: threads and memory. Torch-free, since libgomp reads its
setting when torch loads it, and torch its own at its first allocation. The measurements are in benchmarks/README.md."""

import ctypes
import os
from collections.abc import Mapping, MutableMapping

SPIN_COUNT = "1000"  # of libgomp: about 23 microseconds, so that a waiting thread does not keep a descheduled one off a processor
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch asks for transparent huge pages for tensors of 2 MB and more
TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"  # off: texts are tokenized one by one in threads of ours
OWN_SETTINGS = {
    "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"
}  # fmt: skip
"""Settings of glibc's allocator; where one is in the environment, the allocator is left as it is."""
ARENAS = "MALLOC_ARENA_MAX"  # of the environment, where it takes precedence over our single arena
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # parameters of mallopt(3)
LARGEST = 2**31 - 1  # bytes: the largest value that mallopt takes


def prepare_for_torch() -> None:
    """Makes all settings that the environment does not make otherwise."""
    set_environment()
    keep_freed_memory()


def set_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the spin count and asks for huge pages in a process that has not loaded torch yet, unless the environment already
    sets a wait policy, or huge pages otherwise (0: off)."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
    environment.setdefault(HUGE_PAGES, "1")
    environment.setdefault(TOKENIZER_THREADS, "false")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Makes glibc's allocator keep what is freed, unless the environment sets it otherwise; returns whether it did.

    glibc would map the large tensors of each pass anew, and the system clear every page again. The process stays about as large as
    its largest passes and jobs made it. All threads allocate from one arena: what one arena keeps no other can use, and work
    runs in threads of its own (steering.threads), so that one arena after another would grow to the largest task.
    """
    if OWN_SETTINGS & set(environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
    if kept and ARENAS not in environment:
        mallopt(M_ARENA_MAX, 1)
    return kept


def return_freed_memory() -> None:
    """Returns what the allocator has kept to the system, after work that used much more than passes do, in some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
