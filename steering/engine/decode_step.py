"""DecodeStep: one decode pass as a pure function of tensors, so that it can be exported and compiled ahead of time."""

from typing import Any

import torch

from steering.engine.attachment import Attachment
from steering.engine.attention import SlotAttention
from steering.engine.batch import Batch
from steering.engine.graph_calls import visited
from steering.engine.kv_cache import SlotCache, head_shape
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Float, Int, Residual, Tensor


class DecodeStep(torch.nn.Module):
    """The model under its hooks, decoding one token a row.

    additive: the bank's rows are added inside the graph, fused with what surrounds them. visited: the graph calls
    `visit` after every block instead, which runs whatever operations, conditions and readouts the rows ask for.
    """

    def __init__(self, model: Any, layout: Layout, *, visited: bool) -> None:
        super().__init__()
        self.model = model
        self._layout, self._visited = layout, visited
        self._cache = SlotCache(layout.layer_count)
        self._attachment = Attachment(model, SlotAttention(self._cache))
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
    ) -> tuple[Float[Tensor, "row vocab"], Float[Tensor, "layer row"]]:
        """(logits, 1 / |r| of every row as it arrives after every block). `span` tells by its length how far to look
        back; keys and values, one (slot, kv_head, position, head_dim) a layer, are written in place."""
        count = token_ids.shape[0]
        for layer, key, value in zip(self._cache.layers, keys, values, strict=True):
            layer.keys, layer.values, layer.is_initialized = key, value, True
        self._cache.batch = Batch(
            decode=True,
            segments=(),
            token_ids=token_ids,
            positions=positions,
            slots=torch.arange(count, device=token_ids.device),
            length=span.shape[0],
        )
        inverse: list[Tensor] = []

        def add(layer: int, residual: Residual) -> Residual:
            wide = residual.to(torch.float32)
            inverse.append(torch.linalg.vector_norm(wide, dim=-1).clamp_min(1e-12).reciprocal())
            return wide + rows[layer, :count]

        arguments = {
            "input_ids": token_ids[:, None],
            "position_ids": positions[:, None],
            "use_cache": True,
            "logits_to_keep": 1,
            self._layout.cache_argument: self._cache,
        }
        with self._hooks.step(visited if self._visited else add):
            output = self.model(**arguments)
        self._cache.batch = None
        logits: Tensor = output.logits[:, 0]
        return logits, torch.stack(inverse) if inverse else logits.new_zeros(0)

    def example(self) -> tuple[Any, ...]:
        """Arguments to trace with. No two free sizes are equal, or the tracer would take them for one."""
        heads, width = head_shape(self.model)
        weight = next(self.model.parameters())

        def states() -> list[Tensor]:
            return [weight.new_zeros(4, heads, 384, width) for _ in range(self._layout.layer_count)]

        ids = torch.tensor([1, 2, 3], device=weight.device)
        rows = torch.zeros(self._layout.layer_count, 5, self._layout.d_model, device=weight.device)
        return ids, torch.tensor([5, 9, 7], device=weight.device), torch.arange(128), rows, states(), states()

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Rows, slots, capacity and length are free: one graph serves every batch."""
        free = torch.export.Dim.AUTO
        states = [{0: free, 2: free}] * self._layout.layer_count
        return {0: free}, {0: free}, {0: free}, {1: free}, states, states
