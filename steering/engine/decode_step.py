"""DecodeStep: one decode pass as a pure function of tensors, so that it can be exported and compiled ahead of time."""

from typing import Any

import torch

from steering.engine.attachment import Attachment
from steering.engine.graph_calls import visited
from steering.engine.kv_cache import head_shape
from steering.engine.packed_linears import PackedLinears
from steering.engine.row_attention import RowAttention
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Float, Int, Residual, Tensor


class DecodeStep(torch.nn.Module):
    """The model under its hooks, decoding one token a row.

    additive: the bank's rows are added inside the graph, fused with what surrounds them. visited: the graph calls
    `visit` after every block instead, which runs whatever operations, conditions and readouts the rows ask for.
    linears: multiply by weights that are inputs of the graph, shared by all graphs; None: by constants of the graph.
    """

    def __init__(self, model: Any, layout: Layout, linears: PackedLinears | None, *, visited: bool) -> None:
        super().__init__()
        self.model = model
        self._layout, self._linears, self._visited = layout, linears, visited
        self._attention = RowAttention()
        self._attachment = Attachment(model, self._attention)
        self._hooks = ResidualHooks(layout)

    def close(self) -> None:
        self._hooks.remove()
        self._attachment.close()

    def forward(
        self,
        token_ids: Int[Tensor, "row"],
        positions: Int[Tensor, "row"],
        span: Int[Tensor, "length"],
        rows: Float[Tensor, "layer slot d_model"],
        keys: list[Tensor],
        values: list[Tensor],
        weights: list[Tensor],
    ) -> tuple[Float[Tensor, "row vocab"], Float[Tensor, "layer row"]]:
        """(logits, 1 / |r| of every row as it arrives after every block). `span` tells by its length how far to look
        back; keys and values, one (slot, kv_head, position, head_dim) a layer, are written in place."""
        count = token_ids.shape[0]
        self._attention.begin(positions, span, keys, values)
        if self._linears is not None:
            self._linears.weights = weights
        inverse: list[Tensor] = []

        def add(layer: int, residual: Residual) -> Residual:
            wide = residual.to(torch.float32)
            inverse.append(torch.linalg.vector_norm(wide, dim=-1).clamp_min(1e-12).reciprocal())
            return wide + rows[layer, :count]

        with self._hooks.step(visited if self._visited else add):
            output = self.model(
                input_ids=token_ids[:, None], position_ids=positions[:, None], use_cache=False, logits_to_keep=1
            )
        logits: Tensor = output.logits[:, 0]
        return logits, torch.stack(inverse) if inverse else logits.new_zeros(0)

    def example(self) -> tuple[Any, ...]:
        """Arguments to trace with. No two free sizes are equal, or the tracer would take them for one."""
        heads, width = head_shape(self.model)
        weight = next(self.model.parameters())

        def states() -> list[Tensor]:
            return [weight.new_zeros(4, heads, 384, width) for _ in range(self._layout.layer_count)]

        ids = torch.tensor([1, 2, 3], device=weight.device)
        positions = torch.tensor([5, 9, 7], device=weight.device)
        rows = torch.zeros(self._layout.layer_count, 5, self._layout.d_model, device=weight.device)
        weights = [] if self._linears is None else self._linears.weights
        return ids, positions, torch.arange(128), rows, states(), states(), weights

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Rows, slots, capacity and length are free: one graph serves every batch."""
        free = torch.export.Dim.AUTO
        states = [{0: free, 2: free}] * self._layout.layer_count
        weights: list[dict[int, Any]] = [] if self._linears is None else [{} for _ in self._linears.weights]
        return {0: free}, {0: free}, {0: free}, {1: free}, states, states, weights
