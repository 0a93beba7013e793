"""The edits of one layer as one Triton kernel: `LayerEdits.apply` in apply.py, one program a token, with what gathers the rows of its tables.

It has not run on a GPU yet: the tests run it in Triton's interpreter, and compile it for some GPUs.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from steering.injection import apply, slots
from steering.plan.types import RELU as RELU_KIND
from steering.plan.types import ROTATE as ROTATE_KIND
from steering.shapes import Residual, Tensor

KIND, READ, WEIGHT, MANDATORY, CODES = map(tl.constexpr, (slots.KIND, slots.READ, slots.WEIGHT, slots.MANDATORY, 5))
BIAS, RELATIVE, SCALE, NUMBERS = map(tl.constexpr, range(4))
"""Columns of codes and numbers, and how many there are."""
RELU, ROTATE = tl.constexpr(RELU_KIND), tl.constexpr(ROTATE_KIND)
TINY, PARALLEL, PI, INFINITE = map(tl.constexpr, (apply.TINY, 1e-6, 3.141592653589793, float("inf")))
PER_THREAD = 16
"""Numbers of a residual that a thread holds: several rows of them fit its registers."""


@triton.jit
def _length(values):
    return tl.sqrt_rn(tl.sum(values * values))


@triton.jit
def _rotated(residual, length, direction, angle):
    """Returns what turning toward a direction adds, and its length. The angle between them is not needed, only its cosine and sine."""
    projection = tl.sum(residual * direction)
    across = residual - projection * direction
    height = _length(across)
    whole = tl.maximum(tl.sqrt_rn(projection * projection + height * height), TINY)
    turn = tl.minimum(tl.maximum(angle, -PI), PI)
    cosine = (projection * tl.cos(turn) + height * tl.sin(turn)) / whole
    sine = (height * tl.cos(turn) - projection * tl.sin(turn)) / whole
    # a sine below 0: the turn would go on beyond the direction, or beyond its opposite
    cosine = tl.where(sine < 0.0, tl.where(turn > 0.0, 1.0, -1.0), cosine)
    along = length * cosine - projection
    rest = length * tl.maximum(sine, 0.0) / tl.maximum(height, TINY) - 1.0
    acts = (height > length * PARALLEL) & (angle != 0.0)
    size = tl.sqrt_rn(along * along + rest * rest * height * height)
    return tl.where(acts, along * direction + rest * across, 0.0), tl.where(acts, size, 0.0)


@triton.jit
def _stage(
    residual, length, vectors, numbers, codes, rows, weights, count,
    stage: tl.constexpr, width: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Returns what the edits of one stage change, their coefficients, and whether there are others."""
    at, numbered = tl.arange(0, block), tl.arange(0, wide)
    change, coefficients = tl.zeros([block], tl.float32), tl.zeros([wide], tl.float32)
    others, number = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    row = tl.load(rows)
    while row > 0:
        code, given = codes + row * CODES, numbers + row * NUMBERS
        mine = tl.load(code + MANDATORY) == stage
        others = tl.where(mine, others, 1)
        weight = tl.where(mine, tl.load(weights + tl.load(code + WEIGHT)) * tl.load(given + SCALE), 0.0)
        kind, read = tl.load(code + KIND), tl.load(code + READ)
        end = tl.where(weight == 0.0, 0, width)  # vectors that do nothing are not read
        vector = tl.load(vectors + row * width + at, mask=at < end, other=0.0)
        if kind == ROTATE:
            turned, coefficient = _rotated(residual, length, vector, weight)
            change += turned
        else:
            other = tl.load(vectors + read * width + at, mask=at < tl.where(read > 0, end, 0), other=0.0)
            inner = tl.load(given + BIAS) + tl.load(given + RELATIVE) * length + tl.sum(residual * other)
            inner = tl.where(kind == RELU, tl.maximum(inner, 0.0), inner)
            coefficient = tl.where(weight == 0.0, 0.0, inner * weight)  # even if the numbers overflow
            change += coefficient * vector
        coefficients = tl.where(numbered == number, coefficient, coefficients)
        number += 1
        row = tl.load(rows + number, mask=number < count, other=0)
    return change, coefficients, others


@triton.jit(do_not_specialize=["place", "note", "places", "most", "columns", "count"])
def _edit(
    residual, vectors, numbers, codes, rows, slots, weights, left, edits, changes, scaled, after, place, note, places, most, columns,
    count, width: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    token, noted = tl.program_id(0), note * tl.num_programs(0) + tl.program_id(0)
    at, numbered = tl.arange(0, block), tl.arange(0, wide)
    inside = at < width
    bound = tl.load(left + token)  # by all threads: before a reduction, behind which one of them writes it
    before = tl.load(residual + token.to(tl.int64) * width + at, mask=inside, other=0.0).to(tl.float32)
    rows += (tl.load(slots + token) * places + place) * most
    weights += token * columns
    length = tl.maximum(_length(before), TINY)
    change, coefficients, mandatory = _stage(
        before, length, vectors, numbers, codes, rows, weights, count, 0, width, block, wide
    )
    share = tl.full([], 1.0, tl.float32)
    if bound < INFINITE:
        dose = _length(change) / length
        share = tl.minimum((bound + TINY) / (dose + TINY), 1.0)
        tl.store(left + token, tl.maximum(bound - dose * share, 0.0))
        change *= share
        coefficients *= share
    tl.store(scaled + noted, (share < 1.0).to(tl.float32))
    doses, result = coefficients / length, before + change
    if mandatory > 0:
        met = tl.maximum(_length(result), TINY)
        more, coefficients, mandatory = _stage(
            result, met, vectors, numbers, codes, rows, weights, count, 1, width, block, wide
        )
        doses, result, change = doses + coefficients / met, result + more, change + more
    tl.store(changes + noted, _length(change) / length)
    tl.store(edits + noted.to(tl.int64) * count + numbered, doses, mask=numbered < count)
    tl.store(after + token.to(tl.int64) * width + at, result, mask=inside)


def warps_of(block: int) -> int:
    """Returns the warps of a program."""
    return min(max(block // (32 * PER_THREAD), 1), 32)


def launch(residual: Residual, tables: Sequence[Tensor], place: int, note: int) -> Residual:
    """Does what `fused.by_operations` does, by one kernel on the current stream of a CUDA device."""
    rows, weights, edits = tables[3], tables[5], tables[7]
    assert all(one.is_contiguous() for one in tables)
    residual, width, count = residual.contiguous(), residual.shape[1], edits.shape[2]
    after, block = torch.empty_like(residual), triton.next_power_of_2(width)
    sizes = rows.shape[1], rows.shape[2], weights.shape[1], count
    shape = {"width": width, "block": block, "wide": triton.next_power_of_2(count)}
    with torch.cuda.device_of(residual):  # Triton launches on the current device
        _edit[(len(residual),)](residual, *tables, after, place, note, *sizes, **shape, num_warps=warps_of(block))
    return after
