"""What a process that computes with torch sets before torch is loaded: threads and memory. Torch-free, since libgomp reads its
setting when torch loads it, and torch its own at its first allocation."""

import ctypes
import os
from collections.abc import Mapping, MutableMapping

SPIN_COUNT = "1000"
"""About 23 microseconds on an AMD EPYC; libgomp's default of 300,000 takes 7 milliseconds, during which a thread that waits for
a descheduled one keeps its own processor from it. Measured on two cores (AMD EPYC, SmolLM2-135M, tokens/s at 1 / 8 / 32 requests):
next to two busy processes 54 / 372 / 643 instead of 13 / 131 / 364, next to one 42 / 270 / 674 instead of 38 / 255 / 499, on an idle
machine the same within the noise. A count of 250 is slower on an idle machine, by a quarter at 1 request and a tenth at 8: threads
then sleep within passes.
"""
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Makes torch ask for transparent huge pages for tensors of 2 MB and more; a pass then looks up far fewer addresses.
Measured on two cores (AMD EPYC, SmolLM2-135M), tokens/s in turns: 89 / 503 / 776 at 1 / 8 / 32 requests, 86 / 480 / 752
without."""
TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"
"""Off: texts are tokenized one by one in threads of ours, so that a pool of the library's own would only wait."""
OWN_SETTINGS = frozenset({
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "GLIBC_TUNABLES",
})  # fmt: skip
"""Settings of glibc's allocator; where one is in the environment, the allocator is left as it is."""
ARENAS = "MALLOC_ARENA_MAX"
"""Of the environment: the most arenas of glibc's allocator. Where it is set, it takes precedence over ours."""
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3)."""
LARGEST = 2**31 - 1
"""Bytes: the largest value that mallopt takes."""


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

    A pass over prompts allocates and frees tensors of many megabytes. glibc maps each of them anew and returns it, and the
    system clears every page again. Measured on two cores (AMD EPYC, SmolLM2-135M): eight prompts of 1,820 tokens take 11.9
    instead of 13.2 seconds; `MALLOC_MMAP_MAX_=65536` in the environment switches it off. The process stays about as
    large as its largest passes and jobs made it. Other C libraries have no such setting: there nothing changes.

    All threads allocate from one arena. glibc has eight for each processor, and what one keeps no other can use; work runs in
    threads of its own (steering.threads), so one arena after another would grow to the largest task. Measured under the load
    of tests/load/test_soak.py, two servers side by side, minutes 3 to 9: with one arena it grew by 0.0 MB, 13 grew by 44 MB
    while what was in use stayed at 804 MB. Processor time and context switches per token were equal within 2 %.
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
    """Returns what the allocator has kept to the system, after work that used much more than passes do. Takes some
    milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
