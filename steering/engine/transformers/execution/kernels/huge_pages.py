"""Memory in large pages, for weights that every pass reads from end to end: the processor looks up far fewer addresses."""

import mmap
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from math import prod

import torch

from steering.shapes import Tensor

ALIGNMENT = 64
"""Bytes: a line of the cache."""


def side_by_side(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Zeros of these shapes, one after the other in one mapping that lives as long as any of them.

    Where the system has transparent huge pages (Linux) they are asked for; elsewhere pages are as usual. Measured on two
    cores of an AMD EPYC: all linear layers of SmolLM2-135M, packed, in 5.7 / 6.0 / 9.3 ms for 1 / 8 / 32 rows instead of
    6.1 / 6.5 / 9.5 in a shared mapping, which has none (medians of four processes each, in turns).
    """
    sizes = [-(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT for shape in shapes]
    if not sum(sizes):
        return [torch.zeros(shape, dtype=dtype) for shape in shapes]
    # private: of shared memory systems seldom make large pages, whatever is asked for
    mapping = mmap.mmap(-1, sum(sizes), access=mmap.ACCESS_COPY)
    with suppress(AttributeError, OSError):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    offsets = accumulate(sizes, initial=0)
    return [
        torch.frombuffer(mapping, dtype=dtype, count=prod(shape), offset=offset).view(shape)
        if size
        else torch.zeros(shape, dtype=dtype)
        for shape, size, offset in zip(shapes, sizes, offsets, strict=False)
    ]
