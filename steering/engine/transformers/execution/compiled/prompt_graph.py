"""PromptGraph: one pass over pieces of prompts as a function of tensors, so that it can be exported and compiled."""

from typing import Any

import torch

from steering.engine.transformers.attention.attachment import AttentionPatch
from steering.engine.transformers.execution.compiled import graph_bank
from steering.engine.transformers.execution.compiled.graph_attention import SegmentAttention
from steering.engine.transformers.execution.compiled.graph_bank import GraphBank
from steering.engine.transformers.execution.compiled.packed_linears import PackedLinears
from steering.engine.transformers.execution.kernels.operations import steer
from steering.engine.transformers.memory.slot_cache import states_like
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Float, Int, Tensor


class PromptGraph(torch.nn.Module):
    """The model under its hooks, many tokens in one row. What steers them differs from pass to pass: the graph calls
    `steer`, and where no kernel of ours attends `attend`, and fuses what lies between. linears: see DecodeGraph.
    """

    def __init__(self, model: Any, layout: Layout, linears: PackedLinears | None) -> None:
        super().__init__()
        self.model = model
        self._layout, self._linears = layout, linears
        self._attention = SegmentAttention()
        self._attachment = AttentionPatch(model, self._attention)
        self._hooks = ResidualHooks(layout)

    def close(self) -> None:
        self._hooks.remove()
        self._attachment.close()

    def forward(
        self,
        token_ids: Int[Tensor, "token"],
        positions: Int[Tensor, "token"],
        keep: Int[Tensor, "kept"],
        pieces: tuple[Int[Tensor, "segment 4"], Int[Tensor, "loan 3"]],
        bank: GraphBank,
        keys: list[Tensor],
        values: list[Tensor],
        weights: list[Tensor],
    ) -> tuple[Float[Tensor, "kept vocab"]]:
        """The logits of the tokens in `keep`. pieces: segments and loans of `attend_segments`; keys and values are written
        in place."""
        self._attention.begin(*pieces, keys, values)
        if self._linears is not None:
            self._linears.weights = weights
        with self._hooks.step(lambda layer, residual: steer([residual], *bank, layer)):
            output = self.model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=keep
            )
        return (output.logits[0],)

    def example(self) -> tuple[Any, ...]:
        """Arguments to trace with. No two free sizes are equal, or the tracer would take them for one."""
        device = next(self.model.parameters()).device
        ids = torch.arange(1, 8, device=device)
        weights = [] if self._linears is None else self._linears.weights
        keep = torch.tensor([2, 3, 6], device=device)
        pieces = torch.tensor([[0, 4, 1, 3], [4, 3, 0, 0]]), torch.zeros(5, 3, dtype=torch.int64)
        states = states_like(self.model, self._layout.layer_count), states_like(self.model, self._layout.layer_count)
        bank = graph_bank.example(self._layout.layer_count, self._layout.d_model, len(ids))
        return ids, ids + 3, keep, pieces, bank, *states, weights

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Everything but the model's own sizes is free: one graph serves every pass."""
        free = torch.export.Dim.AUTO
        weights: list[dict[int, Any]] = [] if self._linears is None else [{} for _ in self._linears.weights]
        states = [{0: free, 2: free}] * self._layout.layer_count
        return (
            {0: free},
            {0: free},
            {0: free},
            ({0: free}, {0: free}),
            graph_bank.dynamic_shapes(),
            states,
            states,
            weights,
        )
