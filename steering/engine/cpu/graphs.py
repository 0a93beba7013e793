"""A forward pass as a function of tensors, so that it can be exported and compiled ahead of time."""

from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any, TypeAlias

import torch

from steering.engine.cpu.callbacks import Task, attention_callback
from steering.engine.cpu.kernels.operations import paged_attention, steer
from steering.engine.cpu.kernels.processor import supports_kernels
from steering.engine.cpu.packed_linears import PackedLinears
from steering.engine.transformers.attention import AttentionPatch, Queries, Scores
from steering.engine.transformers.memory.block_pool import BLOCK
from steering.engine.transformers.memory.paged_cache import LayerShape
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Float, Int, Logits, Tensor

HEAD_WIDTH_STEP = 32
"""Kernels read heads a register at a time, so their width is a multiple of this many bfloat16 values."""
FREE: Any = torch.export.Dim.AUTO
"""A size that differs between passes: one graph serves every batch."""
SteeringInputs: TypeAlias = tuple[Tensor, ...]
"""The arguments of `kernels.operations.steer` from `vectors` to `tasks`."""


@lru_cache(maxsize=256)
def tasks(
    layer_count: int, decide: frozenset[int], edited: tuple[int, ...], read: frozenset[int], note: int
) -> Int[Tensor, "layer 2"]:
    """Returns the tasks of every layer. note: where the doses of the first edited layer are noted; the others follow. Cached,
    since consecutive passes rarely differ; nothing writes to it."""
    numbers = {layer: note + number for number, layer in enumerate(edited)}
    return torch.tensor([
        [
            Task.DECIDE * (layer in decide) | Task.EDIT * (layer in numbers) | Task.READ * (layer in read),
            numbers.get(layer, 0),
        ]
        for layer in range(layer_count)
    ])  # fmt: skip


def uses_attention_kernel(shapes: Sequence[LayerShape], *, kernels: bool) -> bool:
    """Whether passes use `paged_attention`, whose cache has a layout of its own: in bfloat16, where every layer has as many
    values as keys, of one supported width.

    Its products use AMX tiles where the CPU has them. Measured on two cores of an Intel Xeon, one layer of SmolLM2-135M, with
    AVX512_BF16 and with AMX: a prompt of 1,820 tokens 52 and 13 ms, a token of 8 sequences of 1,820 0.54 and 0.48 ms.
    """
    return kernels and all(
        supports_kernels(shape.dtype, shape.device)
        and (shape.key_heads, shape.key_width) == (shape.value_heads, shape.value_width)
        and shape.key_width % HEAD_WIDTH_STEP == 0
        for shape in shapes
    )


class PassGraph(torch.nn.Module):
    """The model under its hooks, steered by `steer` after every block, over the tokens of many sequences in one row.

    Attention is computed by our kernel, which writes the cached keys and values in place, or by a callback. shapes: what the cache keeps in each layer. linears: linear layers read packed weights, which are inputs of the graph;
    None: weights are constants of the graph.
    """

    def __init__(
        self, model: Any, layout: Layout, shapes: Sequence[LayerShape], linears: PackedLinears | None, *, kernels: bool
    ) -> None:
        super().__init__()
        self.model = model
        self._layout, self._shapes, self._linears = layout, shapes, linears
        self.kernels = kernels and supports_kernels(shapes[0].dtype, shapes[0].device)
        self.packed = linears is not None
        self._attention_kernel = uses_attention_kernel(shapes, kernels=kernels)
        self._hooks = ResidualHooks(layout)

    def close(self) -> None:
        """Leaves the model as it was."""
        self._hooks.remove()

    def forward(
        self,
        token_ids: Int[Tensor, "token"],
        positions: Int[Tensor, "token"],
        keep: Int[Tensor, "kept"],
        sequences: tuple[Int[Tensor, "segment 3"], Int[Tensor, "segment block"]],
        steering: SteeringInputs,
        keys: list[Float[Tensor, "kv_head slot head_dim"]],
        values: list[Float[Tensor, "kv_head slot head_dim"]],
        weights: list[Tensor],
    ) -> tuple[Float[Tensor, "kept vocab"]]:
        """Returns the logits of the tokens in `keep`. sequences: segments and block tables of `paged_attention`. keys, values: of
        each layer."""

        def attended(layer: int, query: Queries, key: Tensor, value: Tensor, scores: Scores) -> Queries:
            if not self._attention_kernel:
                return attention_callback(query, key, value, layer, *scores).transpose(1, 2)
            states = keys[layer], values[layer]
            return paged_attention(query, key, value, *states, *sequences, *scores).transpose(1, 2)

        if self._linears is not None:
            self._linears.weights = weights
        steered = self._hooks.step(lambda layer, residual: steer([residual], *steering, layer))
        with closing(AttentionPatch(self.model, attended)), steered:
            output = self.model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=keep
            )
        logits: Logits = output.logits
        return (logits[0],)

    def example(self) -> tuple[Any, ...]:
        """Returns arguments to trace with. No two free sizes are equal, or the tracer would unify them."""
        layers, ids = self._layout.layer_count, torch.arange(1, 8)
        count, whole = len(ids), torch.int64
        steering = (
            torch.zeros(17, self._layout.d_model),
            torch.zeros(17, 3),
            torch.zeros(17, 5, dtype=whole),
            torch.zeros(13, layers, 5, dtype=whole),
            torch.zeros(count, dtype=whole),
            torch.zeros(count, 6),
            torch.zeros(count),
            torch.zeros(14, count, 8),
            torch.zeros(14, count),
            torch.zeros(14, count),
            torch.zeros(layers, 2, dtype=whole),
        )
        segments, blocks = torch.tensor([[0, 4, 3], [4, 3, 0]]), torch.tensor([[3, 1, 2, 4], [5, 6, 7, 8]])
        slots = 11 * BLOCK
        keys = [torch.zeros(one.key_heads, slots, one.key_width, dtype=one.dtype) for one in self._shapes]
        values = [torch.zeros(one.value_heads, slots, one.value_width, dtype=one.dtype) for one in self._shapes]
        weights = [] if self._linears is None else self._linears.weights
        return ids, ids + 3, torch.tensor([2, 3, 6]), (segments, blocks), steering, keys, values, weights

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Returns the free sizes: everything but the model's own."""
        states = [{1: FREE}] * len(self._shapes)
        weights: list[dict[int, Any]] = [] if self._linears is None else [{} for _ in self._linears.weights]
        rows, notes, tokens = {0: FREE}, {0: FREE, 1: FREE}, {0: FREE}
        steering: tuple[dict[int, Any], ...] = (
            rows, rows, rows, {0: FREE, 2: FREE}, tokens, {0: FREE, 1: FREE}, tokens, {**notes, 2: FREE}, notes, notes, {},
        )  # fmt: skip
        return {0: FREE}, {0: FREE}, {0: FREE}, ({0: FREE}, {0: FREE, 1: FREE}), steering, states, states, weights
