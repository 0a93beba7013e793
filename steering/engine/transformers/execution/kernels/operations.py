"""Schemas and shapes of the C++ operations, so that graphs can be traced before the library is loaded."""

from collections.abc import Callable
from typing import Any

import torch

from steering.shapes import Float, Tensor

PANEL = 48
"""Columns of a packed weight that lie together: three registers of sums, see gemm_tile.h."""

_library: Any = torch.library.Library("steering", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "packed_linear(Tensor rows, Tensor[] weights, Tensor[] biases, int[] columns, Tensor[] prefetch) -> Tensor"
)
_library.define(
    "packed_swiglu(Tensor rows, Tensor[] weights, Tensor[] biases, int columns, Tensor[] prefetch) -> Tensor"
)
_library.define(
    "paged_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor segments, "
    "Tensor block_tables, float scaling, int? window, float? softcap, Tensor? cosines=None, Tensor? sines=None) -> Tensor"
)
_library.define("rms_norm(Tensor rows, Tensor weight, float epsilon, bool zero_centered) -> Tensor")
_library.define(
    "add_rms_norm(Tensor first, Tensor second, Tensor weight, float epsilon, bool zero_centered) -> (Tensor, Tensor)"
)
_library.define(
    "steer(Tensor[] parts, Tensor bank_rows, Tensor row_indices, Tensor(a!) inverse_norms, Tensor opcodes, int layer) "
    "-> Tensor"
)
_library.define("sample(Tensor logits, Tensor settings, Tensor states) -> Tensor")


def _linear_shape(
    rows: Tensor, _weights: list[Tensor], _biases: list[Tensor], columns: list[int], _prefetch: list[Tensor]
) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], sum(columns))


def _like(rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape)


def _attention_shape(query: Tensor, *_: object) -> Tensor:
    row, head, token, width = query.shape
    return query.new_empty(row, token, head, width)


torch.library.register_fake("steering::packed_linear", _linear_shape, lib=_library)
torch.library.register_fake(
    "steering::packed_swiglu",
    lambda rows, _weights, _biases, columns, _: rows.new_empty(*rows.shape[:-1], columns),
    lib=_library,
)
torch.library.register_fake(
    "steering::sample", lambda logits, *_: logits.new_empty(logits.shape[0], 2, dtype=torch.int64), lib=_library
)
torch.library.register_fake("steering::rms_norm", lambda rows, *_: _like(rows), lib=_library)
torch.library.register_fake("steering::add_rms_norm", lambda first, *_: (_like(first), _like(first)), lib=_library)
torch.library.register_fake("steering::steer", lambda parts, *_: torch.empty_like(parts[0]), lib=_library)
torch.library.register_fake("steering::paged_attention", _attention_shape, lib=_library)

packed_linear: Callable[..., Tensor] = torch.ops.steering.packed_linear
"""(rows (..., width), packed weights, their biases (float32, at least as wide as the panels), their columns, the packed
weights that the next call reads, which are prefetched) -> (..., all columns), the layers' outputs concatenated. bfloat16 with
float32 sums; a row's result has the same bits alone and in a batch."""
packed_swiglu: Callable[..., Tensor] = torch.ops.steering.packed_swiglu
"""(rows, packed weights of gate and up projection, their biases, columns of each, prefetch) -> (..., columns): SiLU(gate) * up,
rounded as if every operation were computed by itself."""
paged_attention: Callable[..., Tensor] = torch.ops.steering.paged_attention
"""(query, key, value (1, head, token, width), keys, values (kv_head, slot, width) as PairedLayout, segments (segment, 3),
block_tables (segment, block), scaling, window, softcap, cosines, sines (1, 1, token, width)) -> (1, token, head, width).
Queries and keys are rotated by the cosines and sines, if there are any. segments: first token, tokens, first position; their
keys and values are written before they are read, and they may share full blocks. A token's result has the same
bits however its sequence is cut and batched."""
rms_norm: Callable[..., Tensor] = torch.ops.steering.rms_norm
"""(rows (..., width), weight (width,), epsilon, zero_centered) -> rows / sqrt(mean of their squares + epsilon) * weight, or with
zero_centered * (1 + weight): the norms of Llama and of Gemma, rounded as theirs. bfloat16; width is a multiple of 16."""
add_rms_norm: Callable[..., tuple[Tensor, Tensor]] = torch.ops.steering.add_rms_norm
"""(first, second, weight, epsilon, zero_centered) -> (first + second, rms_norm of the sum)."""
steer: Callable[..., Tensor] = torch.ops.steering.steer
"""(parts, bank_rows (phase, layer, slot, d_model), row_indices (token,), inverse_norms (layer, at least token), opcodes (layer,),
layer) -> the steered residual; see callbacks.Opcode. parts: the residual (token, d_model), or two summands of it. With ADD,
1 / |residual| is added to inverse_norms. Any floating dtype, any CPU."""
sample: Callable[..., Tensor] = torch.ops.steering.sample
"""(logits (row, vocab) in bfloat16, settings (row, 4) in float32, states (row, 4) of noise.states) -> (row, 2): the token of each row,
and whether its logits are finite or masked by -infinity. settings: temperature, top_k or 0, top_p or infinity, log(min_p) or
-infinity. Temperature 0: the first index of the maximum. Otherwise the argmax of logits / temperature + noise over the tokens that
the filters leave, up to the rounding of noise and sums."""

AOTI_SHIMS = {
    torch.ops.steering.packed_linear.default: [
        "AOTITorchError aoti_torch_cpu_packed_linear(AtenTensorHandle, const AtenTensorHandle*, int64_t, "
        "const AtenTensorHandle*, int64_t, const int64_t*, int64_t, const AtenTensorHandle*, int64_t, AtenTensorHandle*)"
    ],
    torch.ops.steering.packed_swiglu.default: [
        "AOTITorchError aoti_torch_cpu_packed_swiglu(AtenTensorHandle, const AtenTensorHandle*, int64_t, "
        "const AtenTensorHandle*, int64_t, int64_t, const AtenTensorHandle*, int64_t, AtenTensorHandle*)"
    ],
    torch.ops.steering.steer.default: [
        "AOTITorchError aoti_torch_cpu_steer(const AtenTensorHandle*, int64_t, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle, AtenTensorHandle, int64_t, AtenTensorHandle*)"
    ],
    torch.ops.steering.paged_attention.default: [
        "AOTITorchError aoti_torch_cpu_paged_attention(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double, const int64_t*, const double*, "
        "const AtenTensorHandle*, const AtenTensorHandle*, AtenTensorHandle*)"
    ],
    torch.ops.steering.rms_norm.default: [
        "AOTITorchError aoti_torch_cpu_rms_norm(AtenTensorHandle, AtenTensorHandle, double, int32_t, AtenTensorHandle*)"
    ],
    torch.ops.steering.add_rms_norm.default: [
        "AOTITorchError aoti_torch_cpu_add_rms_norm(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double, int32_t, "
        "AtenTensorHandle*, AtenTensorHandle*)"
    ],
}
"""C functions that a compiled graph calls in place of the operations, see operations.h."""


def pack_weight(weight: Float[Tensor, "column width"]) -> Float[Tensor, "panel pair panel_column 2"]:
    """Packs a weight for `packed_linear`: column panels, two consecutive inputs of a column next to each other, zeros for the
    missing columns of the last panel. `width` is even."""
    columns, width = weight.shape
    panels = -(-columns // PANEL)
    full = torch.nn.functional.pad(weight, (0, 0, 0, panels * PANEL - columns))
    return full.view(panels, PANEL, width // 2, 2).transpose(1, 2).contiguous()


def pad_bias(bias: Float[Tensor, "column"]) -> Float[Tensor, "panel_columns"]:
    """Pads a bias to the width of the panels, in float32."""
    return torch.nn.functional.pad(bias.to(torch.float32), (0, -bias.shape[0] % PANEL))
