"""Packs blocks of weights for `packed_linear`, in the layout of quantized.h."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from steering.engine.cpu.kernels.operations import PANEL, STEP
from steering.model.blocks import INPUTS, Blocks
from steering.shapes import Shaped, Tensor

OCTET = 8  # columns whose scales and numbers lie together
PANELS_AT_ONCE = 64  # bounds the memory that packing takes


class Parts(NamedTuple):
    """Blocks taken apart. numbers: without sign. header: scales in float16, then minima. scales: of groups of inputs, then minima."""

    numbers: Shaped[Tensor, "row block input"]
    header: Shaped[Tensor, "row block kind 2"]
    scales: Shaped[Tensor, "row block group kind"]


class Layout(NamedTuple):
    """The layout of a format in a panel. parts: takes blocks (row, block, byte) apart."""

    bits: int
    kinds: int  # 2: minima are stored too
    groups: int  # with scales of their own; 0: those of the block
    parts: Callable[[Tensor], Parts]

    def block_bytes(self, inputs: int) -> int:
        """Bytes of a block of a panel, which name the format: see quantized.h."""
        return PANEL * (2 * self.kinds + self.groups * self.kinds) + PANEL * inputs * self.bits // 8


def _halves(values: Tensor, kinds: int) -> Tensor:
    return torch.unflatten(values, -1, (kinds, 2))


def _none(values: Tensor) -> Tensor:
    return values.new_empty(*values.shape[:2], 0, 1)


def _nibbles(values: Tensor) -> Tensor:
    return torch.cat([values & 15, values >> 4], -1)


def _bits(values: Tensor, width: int = 1) -> Tensor:
    """(..., byte) -> (..., byte, fields of `width` bits), the lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)
    return (values[..., None] >> shifts) & ((1 << width) - 1)


def _plain(kinds: int) -> Callable[[Tensor], Parts]:
    """Q4_0, Q4_1: scales, numbers."""
    return lambda raw: Parts(_nibbles(raw[..., 2 * kinds :]), _halves(raw[..., : 2 * kinds], kinds), _none(raw))


def _five(kinds: int) -> Callable[[Tensor], Parts]:
    """Q5_0, Q5_1: scales, fifth bits, low bits."""

    def parts(raw: Tensor) -> Parts:
        header, high, low = torch.split(raw, [2 * kinds, 4, 16], -1)
        return Parts(_nibbles(low) | _bits(high).flatten(-2) << 4, _halves(header, kinds), _none(raw))

    return parts


def _eight(raw: Tensor) -> Parts:
    """Q8_0: a scale, signed numbers, which become unsigned."""
    return Parts(raw[..., 2:] ^ 128, _halves(raw[..., :2], 1), _none(raw))


def _nested(*, five: bool) -> Callable[[Tensor], Parts]:
    """Q4_K, Q5_K: scale and minimum, those of eight groups in 6 bits, fifth bits, low bits."""

    def parts(raw: Tensor) -> Parts:
        header, packed, high, low = torch.split(raw, [4, 12, 32 if five else 0, 128], -1)
        scale, minimum, rest = torch.split(packed, 4, -1)
        scales = torch.cat([scale & 63, (rest & 15) | (scale >> 2 & 48)], -1)
        minima = torch.cat([minimum & 63, (rest >> 4) | (minimum >> 2 & 48)], -1)
        numbers = _nibbles(torch.unflatten(low, -1, (4, 32))).flatten(-2)
        if five:
            numbers = numbers | _bits(high).transpose(-1, -2).flatten(-2) << 4
        return Parts(numbers, _halves(header, 2), torch.stack([scales, minima], -1))

    return parts


def _six(raw: Tensor) -> Parts:
    """Q6_K: low bits, high bits, signed scales of sixteen groups, scale."""
    low, high, scales, header = torch.split(raw, [128, 64, 16, 2], -1)
    lows = _nibbles(torch.unflatten(low, -1, (2, 64))).flatten(-2)
    highs = _bits(torch.unflatten(high, -1, (2, 32)), 2).transpose(-1, -2).flatten(-3)
    return Parts(lows | highs << 4, _halves(header, 1), scales[..., None])


LAYOUTS: Mapping[str, Layout] = {
    "Q4_0": Layout(4, 1, 0, _plain(1)),
    "Q4_1": Layout(4, 2, 0, _plain(2)),
    "Q5_0": Layout(5, 1, 0, _five(1)),
    "Q5_1": Layout(5, 2, 0, _five(2)),
    "Q8_0": Layout(8, 1, 0, _eight),
    "Q4_K": Layout(4, 2, 8, _nested(five=False)),
    "Q5_K": Layout(5, 2, 8, _nested(five=True)),
    "Q6_K": Layout(6, 1, 16, _six),
}


def packed_shape(form: str, outputs: int, inputs: int) -> tuple[int, int, int]:
    """Returns (panel, block, byte) of a packed weight."""
    size = INPUTS[form]
    return -(-outputs // PANEL), inputs // size, LAYOUTS[form].block_bytes(size)


def pack_blocks(blocks: Blocks, to: Shaped[Tensor, "panel block byte"]) -> None:
    """Packs the blocks of a weight, with zeros for the missing columns of the last panel."""
    layout = LAYOUTS[blocks.format]
    rows = torch.unflatten(blocks.rows, 1, (to.shape[1], -1))
    for first in range(0, len(to), PANELS_AT_ONCE):
        target = to[first : first + PANELS_AT_ONCE]
        some = rows[first * PANEL : (first + len(target)) * PANEL]
        missing = len(target) * PANEL - len(some)
        target.copy_(_packed(layout, torch.nn.functional.pad(some, (0, 0, 0, 0, 0, missing))))


def _packed(layout: Layout, rows: Shaped[Tensor, "row block byte"]) -> Tensor:
    """(panel * 48, block, byte of the file) -> (panel, block, byte of the panel)."""
    numbers, header, scales = layout.parts(rows)

    def by_octet(values: Tensor) -> Tensor:
        """(row, block, ..., last) -> (panel, block, octet, ..., last, column), as bytes (panel, block, octet, ..., byte)."""
        octets = torch.unflatten(values, 0, (-1, PANEL // OCTET, OCTET))
        moved = octets.permute(0, 3, 1, *range(4, octets.dim()), 2).contiguous()
        return moved.flatten(-2).view(torch.uint8)

    planes = [by_octet(plane) for plane in _planes(torch.unflatten(numbers, -1, (-1, STEP // 2, 2)), layout.bits)]
    parts = [
        by_octet(header.view(torch.int16).squeeze(-1)),
        by_octet(scales).flatten(3),
        torch.cat(planes, -1).flatten(3),
    ]
    return torch.cat(parts, -1).flatten(2)


def _planes(numbers: Shaped[Tensor, "row block step pair 2"], bits: int) -> list[Tensor]:
    """Packs the numbers of 16 pairs -> (row, block, step, word), whose words have those of both inputs: the low four bits, then the rest."""
    if bits == 8:
        return [_words(numbers, 4, 8, torch.int32)]
    low = _words(numbers & 15, 2, 4, torch.int32)
    if bits == 4:
        return [low]
    return [low, _words(numbers >> 4, 1, bits - 4, torch.int16 if bits == 5 else torch.int32)]


def _words(numbers: Shaped[Tensor, "row block step pair 2"], words: int, width: int, dtype: torch.dtype) -> Tensor:
    """Joins the numbers of each input, `width` bits each, the first in the lowest, in words of a dtype; those of a pair in one of twice its
    size."""
    fields = torch.unflatten(numbers, -2, (words, -1))
    joined = torch.zeros_like(fields[..., 0, :], dtype=dtype)
    for place in range(fields.shape[-2]):
        joined |= fields[..., place, :].to(dtype) << width * place
    return joined.view(torch.int64 if dtype == torch.int32 else torch.int32).squeeze(-1)
