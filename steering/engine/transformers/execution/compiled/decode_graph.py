"""DecodeGraph: one decode pass as a pure function of tensors, so that it can be exported and compiled ahead of time."""

from typing import Any

import torch

from steering.engine.transformers.attention.attachment import AttentionPatch
from steering.engine.transformers.execution.compiled import graph_bank
from steering.engine.transformers.execution.compiled.graph_attention import RowAttention
from steering.engine.transformers.execution.compiled.graph_bank import GraphBank
from steering.engine.transformers.execution.compiled.packed_linears import PackedLinears
from steering.engine.transformers.execution.kernels.operations import steer
from steering.engine.transformers.memory.slot_cache import states_like
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Float, Int, Tensor


class DecodeGraph(torch.nn.Module):
    """The model under its hooks, decoding one token a row.

    After every block the graph calls `steer`: nothing happens there, or the bank's rows are added, or `visit` runs whatever
    operations, conditions and readouts the rows ask for.
    linears: multiply by weights that are inputs of the graph, shared by all graphs; None: by constants of the graph.
    """

    def __init__(self, model: Any, layout: Layout, linears: PackedLinears | None) -> None:
        super().__init__()
        self.model = model
        self._layout, self._linears = layout, linears
        self._attention = RowAttention()
        self._attachment = AttentionPatch(model, self._attention)
        self._hooks = ResidualHooks(layout)

    def close(self) -> None:
        self._hooks.remove()
        self._attachment.close()

    def forward(
        self,
        token_ids: Int[Tensor, "row"],
        positions: Int[Tensor, "row"],
        span: Int[Tensor, "length"],
        bank: GraphBank,
        keys: list[Tensor],
        values: list[Tensor],
        weights: list[Tensor],
    ) -> tuple[Float[Tensor, "row vocab"]]:
        """Logits. `span` tells by its length how far to look back; keys and values, one (slot, kv_head, position, head_dim) a
        layer, are written in place."""
        self._attention.begin(positions, span, keys, values)
        if self._linears is not None:
            self._linears.weights = weights
        with self._hooks.step(lambda layer, residual: steer([residual], *bank, layer)):
            output = self.model(
                input_ids=token_ids[:, None], position_ids=positions[:, None], use_cache=False, logits_to_keep=1
            )
        return (output.logits[:, 0],)

    def example(self) -> tuple[Any, ...]:
        """Arguments to trace with. No two free sizes are equal, or the tracer would take them for one."""
        device = next(self.model.parameters()).device
        ids, positions = torch.tensor([1, 2, 3], device=device), torch.tensor([5, 9, 7], device=device)
        bank = graph_bank.example(self._layout.layer_count, self._layout.d_model, len(ids))
        states = states_like(self.model, self._layout.layer_count), states_like(self.model, self._layout.layer_count)
        weights = [] if self._linears is None else self._linears.weights
        return ids, positions, torch.arange(128), bank, *states, weights

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Rows, slots, capacity and length are free: one graph serves every batch."""
        free = torch.export.Dim.AUTO
        states = [{0: free, 2: free}] * self._layout.layer_count
        weights: list[dict[int, Any]] = [] if self._linears is None else [{} for _ in self._linears.weights]
        return {0: free}, {0: free}, {0: free}, graph_bank.dynamic_shapes(), states, states, weights
