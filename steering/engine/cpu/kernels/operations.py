"""Schemas and shapes of the C++ operations, so that graphs can be traced before the library is loaded.

Tensors are bfloat16, except biases and the tables of edits (float32), indices (int64) and the parts of `steer` (any floating type).
Every kernel sums in an order that does not depend on the batch: a row's result has the same bits alone and among others.
"""

from collections.abc import Callable
from typing import Any, cast

import torch

from steering.shapes import Float, Tensor

PANEL = 48  # columns of a packed weight that lie together: three registers of sums, see gemm_tile.h
STEP = 32  # inputs of a product of AMX tiles; packed weights have a multiple of it
_library: Any = torch.library.Library("steering", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(
    schema: str, shape: Callable[..., Any], implementation: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Defines an operation and the shape of its result, and returns it. implementation: None where it is in C++."""
    _library.define(schema)
    name = schema.partition("(")[0]
    torch.library.register_fake(f"steering::{name}", shape, lib=_library)
    if implementation is not None:
        # by hand: a call of `torch.library.custom_op` costs ten times as much, and a pass makes one per layer
        _library.impl(name, implementation, "CompositeExplicitAutograd")
    operation: Callable[..., Any] = getattr(torch.ops.steering, name)
    return operation


packed_linear: Callable[..., Tensor] = define(
    "packed_linear(Tensor rows, Tensor[] weights, Tensor[] biases, int[] columns, Tensor[] prefetch) -> Tensor",
    lambda rows, _weights, _biases, columns, _: rows.new_empty(*rows.shape[:-1], sum(columns)),
)
"""Multiplies rows (..., width) by the packed weights of several layers -> (..., all columns), their outputs concatenated.

biases: float32, at least as wide as the panels. columns: of each layer. prefetch: the packed weights that the next call reads.
"""
packed_swiglu: Callable[..., Tensor] = define(
    "packed_swiglu(Tensor rows, Tensor[] weights, Tensor[] biases, int columns, Tensor[] prefetch) -> Tensor",
    lambda rows, _weights, _biases, columns, _: rows.new_empty(*rows.shape[:-1], columns),
)
"""SiLU(gate) * up of the packed weights of gate and up projection -> (..., columns), rounded as if every operation were
computed by itself. columns: of each."""
paged_attention: Callable[..., Tensor] = define(
    "paged_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor segments, "
    "Tensor block_tables, float scaling, int? window, float? softcap, Tensor? cosines=None, Tensor? sines=None) -> Tensor",
    lambda query, *_: torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format),
)
"""Attends from query, key, value (1, head, token, width) to the cache -> (1, token, head, width), after writing keys and values.

keys, values: (kv_head, slot, width) as PairedLayout.
segments: (segment, 3): first token, tokens, first position.
block_tables: (segment, block): the blocks of each segment, in order; segments may share full blocks.
cosines, sines: (1, 1, token, width) by which queries and keys are rotated, if there are any.
A token's result has the same bits however its text is cut and batched.
"""
rms_norm: Callable[..., Tensor] = define(
    "rms_norm(Tensor rows, Tensor weight, float epsilon, bool zero_centered) -> Tensor",
    lambda rows, *_: rows.new_empty(rows.shape),
)
"""rows (..., width) / sqrt(mean of their squares + epsilon) * weight, or with zero_centered * (1 + weight): the norms of Llama and
of Gemma, rounded as theirs. width is a multiple of 16."""
add_rms_norm: Callable[..., tuple[Tensor, Tensor]] = define(
    "add_rms_norm(Tensor first, Tensor second, Tensor weight, float epsilon, bool zero_centered) -> (Tensor, Tensor)",
    lambda first, *_: (first.new_empty(first.shape), first.new_empty(first.shape)),
)
"""(first, second, weight, epsilon, zero_centered) -> (first + second, rms_norm of the sum)."""
steer: Callable[..., Tensor] = define(
    "steer(Tensor[] parts, Tensor vectors, Tensor numbers, Tensor codes, Tensor rows, Tensor slots, Tensor weights, "
    "Tensor(a!) left, Tensor(b!) edits, Tensor(c!) changes, Tensor(d!) scaled, Tensor tasks, int layer) -> Tensor",
    lambda parts, *_: torch.empty_like(parts[0]),
)
"""Steers the residual after a block, as `injection.apply.LayerEdits.apply` does, on any CPU.

parts: the residual (token, d_model), or two summands of it, in any floating dtype.
vectors, numbers, codes, rows: the tables of `injection.slots.Slots`.
slots (token,), weights (token, column), left (token,): see `injection.injector.Injection`.
edits (note, token, edit), changes, scaled (note, token): what is noted of doses, see `injection.injector.PassDoses`.
tasks (layer, 2): graphs.Task of each layer, and where its doses are noted.
"""
sample: Callable[..., Tensor] = define(
    "sample(Tensor logits, Tensor settings, Tensor states, int ranked=0, Tensor? allowed=None) -> Tensor",
    lambda logits, _settings, _states, ranked=0, _allowed=None: logits.new_empty(
        logits.shape[0], max(ranked, 1) + 1, dtype=torch.int64
    ),
)
"""Chooses from logits (row, vocab) -> (row, 2): the token of each row, and whether its logits are finite or masked by -infinity.

settings: (row, 4) in float32: temperature, top_k or 0, top_p or infinity, log(min_p) or -infinity.
states: (row, 4) of sampling.states.
Temperature 0: the first index of the maximum. Otherwise the argmax of logits / temperature + noise over the tokens that the
filters leave, up to the rounding of noise and sums.
ranked: above 0 the result is (row, ranked + 1): the tokens that come first, without the filters, best first. Where a grammar excludes
tokens, the first allowed one is chosen; ~token stands for a token that the filters may then exclude.
allowed: (row, vocab / 32) in int32, bit i of number j is that of token 32 j + i; the others are left out before anything else.
"""
_C_TYPES = {
    "Tensor": "AtenTensorHandle",
    "List[Tensor]": "const AtenTensorHandle*, int64_t",
    "Optional[Tensor]": "const AtenTensorHandle*",
    "int": "int64_t",
    "List[int]": "const int64_t*, int64_t",
    "Optional[int]": "const int64_t*",
    "float": "double",
    "Optional[float]": "const double*",
    "bool": "int32_t",
}


def _c_function(schema: Any) -> str:
    """Declares the C function of an operation: its arguments, then where each result is written."""
    parameters = [_C_TYPES[str(argument.type)] for argument in schema.arguments] + ["AtenTensorHandle*"] * len(
        schema.returns
    )
    return f"AOTITorchError aoti_torch_cpu_{schema.name.partition('::')[2]}({', '.join(parameters)})"


AOTI_SHIMS = {
    each.default: [_c_function(each.default._schema)]
    for each in cast(Any, (packed_linear, packed_swiglu, paged_attention, rms_norm, add_rms_norm, steer))
}
"""C functions that a compiled graph calls in place of the operations, see operations.h."""


def packed_shape(columns: int, width: int) -> tuple[int, int, int, int]:
    """(panel, pair, column of the panel, 2) of a packed weight."""
    return -(-columns // PANEL), -(-width // STEP) * STEP // 2, PANEL, 2


def pack_weight(weight: Float[Tensor, "column width"]) -> Float[Tensor, "panel pair panel_column 2"]:
    """Packs a weight for `packed_linear`: column panels, two consecutive inputs of a column next to each other, zeros for the
    missing columns of the last panel and for missing inputs."""
    columns, width = weight.shape
    panels, pairs, *_ = packed_shape(columns, width)
    full = torch.nn.functional.pad(weight, (0, 2 * pairs - width, 0, panels * PANEL - columns))
    return full.view(panels, PANEL, pairs, 2).transpose(1, 2).contiguous()


def configure_kernels(linear: str, fma_rows: int, *, team: bool, block_rows: int = 8) -> None:
    """Chooses how the kernels of this process compute, between two passes.

    linear: `pairs` (VDPBF16PS or its order), or the order of AMX tiles: `tiles`, `fma`, or `emulated`, which is slow and for tests.
    fma_rows: up to how many rows `tiles` multiplies by FMA, with the same bits. team: threads of our own in place of OpenMP's.
    block_rows: up to how many rows read the blocks of a weight that is packed in bfloat16 too, with the same bits.
    Raises RuntimeError for what does not run on this processor.
    """
    torch.ops.steering.configure_kernels(linear, fma_rows, team, block_rows)


def pad_bias(bias: Float[Tensor, "column"]) -> Float[Tensor, "panel_columns"]:
    """Pads a bias to the width of the panels, in float32."""
    return torch.nn.functional.pad(bias.to(torch.float32), (0, -bias.shape[0] % PANEL))
