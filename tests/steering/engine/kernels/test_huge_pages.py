"""Tensors side by side in one mapping are tensors like others: apart, aligned, and there as long as one is."""

import gc
import re
from pathlib import Path

import pytest
import torch

from steering.engine.transformers.execution.kernels.huge_pages import ALIGNMENT, side_by_side

SHAPES = [(3, 5), (1,), (2, 3, 7), (0, 4), (1000, 9)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_each_has_its_shape_and_none_touches_another(dtype: torch.dtype) -> None:
    tensors = side_by_side(SHAPES, dtype)
    assert [tuple(tensor.shape) for tensor in tensors] == SHAPES
    assert all(tensor.dtype == dtype and tensor.is_contiguous() for tensor in tensors)
    assert not any(tensor.any() for tensor in tensors)
    for number, tensor in enumerate(tensors, 1):
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(tensors, 1))


def test_each_begins_on_a_line_of_the_cache() -> None:
    filled = [tensor for tensor in side_by_side(SHAPES, torch.bfloat16) if tensor.numel()]
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in filled)


def test_what_is_kept_outlives_the_rest() -> None:
    kept = side_by_side(SHAPES, torch.float32)[2].fill_(7)
    gc.collect()
    assert (kept == 7).all()


@pytest.mark.parametrize("shapes", [[], [(0,), (3, 0)]])
def test_nothing_needs_no_memory(shapes: list[tuple[int, ...]]) -> None:
    assert [tuple(tensor.shape) for tensor in side_by_side(shapes, torch.float32)] == shapes


PAGES, SETTING = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="needs a system with transparent huge pages"
)
def test_the_system_may_use_large_pages() -> None:
    """As it says itself of the part of memory in which they lie (whether it does, depends on what is free)."""
    tensor = side_by_side([(8 << 20,)], torch.float32)[0]
    begins = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)
    parts = PAGES.read_text()
    for found in begins.finditer(parts):
        if int(found[1], 16) <= tensor.data_ptr() < int(found[2], 16):
            assert re.search(r"^THPeligible: +(\d)", parts[found.start() :], re.MULTILINE)[1] == "1"  # type: ignore[index]
            return
    pytest.fail("the tensor lies nowhere")
