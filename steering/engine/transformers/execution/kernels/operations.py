"""The operations of our C++, as torch knows them: by name and shape before the library is loaded."""

from collections.abc import Callable
from typing import Any

import torch

from steering.shapes import Float, Tensor

PANEL = 48
"""Columns of a packed weight that lie together: three registers of sums, see tile.h."""

_library: Any = torch.library.Library("steering", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("linears(Tensor rows, Tensor[] packed, Tensor[] biases, int[] columns, Tensor[] following) -> Tensor")
_library.define(
    "gated_linears(Tensor rows, Tensor[] packed, Tensor[] biases, int columns, Tensor[] following) -> Tensor"
)
_library.define(
    "attend_rows(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor positions, "
    "float scaling, int? window, float? softcap) -> Tensor"
)
_library.define(
    "attend_segments(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor segments, "
    "Tensor loans, float scaling, int? window, float? softcap) -> Tensor"
)
_library.define(
    "steer(Tensor[] parts, Tensor rows, Tensor places, Tensor(a!) inverse, Tensor tasks, int layer) -> Tensor"
)
_library.define("likeliest(Tensor logits) -> Tensor")


def _linears(
    rows: Tensor, _packed: list[Tensor], _biases: list[Tensor], columns: list[int], _following: list[Tensor]
) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], sum(columns))


def _attended(query: Tensor, *_: object) -> Tensor:
    row, head, token, width = query.shape
    return query.new_empty(row, token, head, width)


torch.library.register_fake("steering::linears", _linears, lib=_library)
torch.library.register_fake(
    "steering::gated_linears",
    lambda rows, _packed, _biases, columns, _: rows.new_empty(*rows.shape[:-1], columns),
    lib=_library,
)
torch.library.register_fake(
    "steering::likeliest", lambda logits: logits.new_empty(logits.shape[0], 2, dtype=torch.int64), lib=_library
)
torch.library.register_fake("steering::steer", lambda parts, *_: torch.empty_like(parts[0]), lib=_library)
torch.library.register_fake("steering::attend_rows", _attended, lib=_library)
torch.library.register_fake("steering::attend_segments", _attended, lib=_library)

linears: Callable[..., Tensor] = torch.ops.steering.linears
"""(rows (..., width), packed weights, their biases in float32 at least as wide as the panels, their columns, the packed
weights that the next call reads, fetched while this one ends) -> (..., all columns), the weights' side by side. In bfloat16,
sums in float32; a row's result is the same alone and among others."""
gated_linears: Callable[..., Tensor] = torch.ops.steering.gated_linears
"""(rows, two packed weights, their biases, columns of each, what the next call reads) -> (..., columns): SiLU of the first
layer times the second, rounded as if each step were computed for itself."""
attend_rows: Callable[..., Tensor] = torch.ops.steering.attend_rows
"""(query, key, value (row, head, 1, width), keys, values (slot, kv_head, position, width), positions (row,), scaling,
window, softcap) -> (row, 1, head, width). Row r writes its key and value at its position of slot r, then attends."""
attend_segments: Callable[..., Tensor] = torch.ops.steering.attend_segments
"""(query, key, value (1, head, token, width), keys, values (slot, kv_head, position, width), segments (segment, 4), loans
(loan, 3), scaling, window, softcap) -> (1, token, head, width). segments: first token, tokens, slot, position of the first;
their keys and values are written first. loans: borrower, lender, position, then copied from slot to slot."""
steer: Callable[..., Tensor] = torch.ops.steering.steer
"""(parts, rows (phase, layer, slot, d_model), places (token,), inverse (layer, at least token), tasks (layer,), layer) -> the
residual as it goes on; see graph_calls.Task. parts: the residual (token, d_model), or two whose sum it is. Where the bank's
rows are added: places are SteeringBank.places, and 1 / |residual| is added to inverse. In any dtype and on any processor."""
likeliest: Callable[..., Tensor] = torch.ops.steering.likeliest
"""(logits (row, vocab) in bfloat16) -> (row, 2): the first of the likeliest tokens, and whether all logits are finite."""

GRAPH_ENTRIES = {
    torch.ops.steering.linears.default: [
        "AOTITorchError aoti_torch_cpu_linears(AtenTensorHandle, const AtenTensorHandle*, int64_t, "
        "const AtenTensorHandle*, int64_t, const int64_t*, int64_t, const AtenTensorHandle*, int64_t, AtenTensorHandle*)"
    ],
    torch.ops.steering.gated_linears.default: [
        "AOTITorchError aoti_torch_cpu_gated_linears(AtenTensorHandle, const AtenTensorHandle*, int64_t, "
        "const AtenTensorHandle*, int64_t, int64_t, const AtenTensorHandle*, int64_t, AtenTensorHandle*)"
    ],
    torch.ops.steering.attend_rows.default: [
        "AOTITorchError aoti_torch_cpu_attend_rows(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double, const int64_t*, const double*, AtenTensorHandle*)"
    ],
    torch.ops.steering.steer.default: [
        "AOTITorchError aoti_torch_cpu_steer(const AtenTensorHandle*, int64_t, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle, AtenTensorHandle, int64_t, AtenTensorHandle*)"
    ],
    torch.ops.steering.attend_segments.default: [
        "AOTITorchError aoti_torch_cpu_attend_segments(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double, const int64_t*, const double*, "
        "AtenTensorHandle*)"
    ],
}
"""What a compiled graph calls in place of an operation: see graph_entry.h."""


def packed(weight: Float[Tensor, "column width"]) -> Float[Tensor, "panel pair panel_column 2"]:
    """A weight as `linears` reads it: column panels, two consecutive inputs of a column side by side, zeros where the last
    panel has no column. `width` is even."""
    columns, width = weight.shape
    panels = -(-columns // PANEL)
    full = torch.nn.functional.pad(weight, (0, 0, 0, panels * PANEL - columns))
    return full.view(panels, PANEL, width // 2, 2).transpose(1, 2).contiguous()


def padded(bias: Float[Tensor, "column"]) -> Float[Tensor, "panel_columns"]:
    """A bias as wide as the panels, in float32."""
    return torch.nn.functional.pad(bias.to(torch.float32), (0, -bias.shape[0] % PANEL))
