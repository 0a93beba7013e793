"""Memory that the server frees is used again without asking the system for it, and an operator's own setting is respected."""

import platform
import subprocess
import sys

import pytest

from app.allocator import keep_freed_memory

MEASURE = """
import resource, sys
from app.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory({})
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(bytearray(48 << 20))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(4)][-1])
"""
"""Prints how many pages the system handed out for two buffers of 48 MB that were allocated and freed before."""


def page_faults(mode: str) -> int:
    """Runs the measurement in a process of its own, since the setting holds for a whole process."""
    done = subprocess.run([sys.executable, "-c", MEASURE, mode], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")
def test_freed_memory_is_used_again() -> None:
    assert page_faults("plain") > 1000
    assert page_faults("keep") < 100


@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_take_precedence(name: str) -> None:
    assert keep_freed_memory({name: "1"}) is False
