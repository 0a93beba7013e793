"""Decode and prefill passes as functions of tensors, so that they can be exported and compiled ahead of time."""

from functools import lru_cache
from typing import Any, Final, TypeAlias

import torch

from steering.engine.transformers.attention.attachment import AttentionPatch
from steering.engine.transformers.execution.compiled.callbacks import Opcode
from steering.engine.transformers.execution.compiled.graph_attention import DecodeAttention, PrefillAttention
from steering.engine.transformers.execution.compiled.packed_linears import PackedLinears
from steering.engine.transformers.execution.kernels.operations import steer
from steering.engine.transformers.memory.slot_cache import states_like
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.plan.types import Phase
from steering.shapes import Float, Int, Logits, Tensor

KINDS: Final = ("decode", "prefill")
FREE: Any = torch.export.Dim.AUTO
"""A size that differs between passes: one graph serves every batch."""
GraphBank: TypeAlias = tuple[
    Float[Tensor, "phase layer slot d_model"],
    Int[Tensor, "token"],
    Float[Tensor, "layer sum"],
    Int[Tensor, "layer"],
]
"""bank_rows, row_indices, inverse_norms and opcodes of `kernels.operations.steer`."""


@lru_cache(maxsize=64)
def opcodes(layer_count: int, callbacks: frozenset[int], adds: frozenset[int]) -> Int[Tensor, "layer"]:
    """The Opcode of every layer. Cached, since consecutive passes rarely differ; nothing writes to it."""
    return torch.tensor(
        [
            Opcode.CALLBACK if layer in callbacks else Opcode.ADD if layer in adds else Opcode.NONE
            for layer in range(layer_count)
        ]
    )


class _PassGraph(torch.nn.Module):
    """The model under its hooks, steered by `steer` after every block.

    linears: linear layers read packed weights, which are inputs of the graph and shared by all graphs; None: weights are
    constants of the graph.
    """

    def __init__(self, model: Any, layout: Layout, linears: PackedLinears | None, attention: Any) -> None:
        super().__init__()
        self.model = model
        self._layout, self._linears = layout, linears
        self._attention = attention
        self._patch = AttentionPatch(model, attention)
        self._hooks = ResidualHooks(layout)

    def close(self) -> None:
        """Leaves the model as it was."""
        self._hooks.remove()
        self._patch.close()

    def _logits(
        self, token_ids: Tensor, positions: Tensor, keep: Tensor | int, bank: GraphBank, weights: list[Tensor]
    ) -> Logits:
        if self._linears is not None:
            self._linears.weights = weights
        with self._hooks.step(lambda layer, residual: steer([residual], *bank, layer)):
            output = self.model(input_ids=token_ids, position_ids=positions, use_cache=False, logits_to_keep=keep)
        logits: Logits = output.logits
        return logits

    def _bank_example(self, tokens: int) -> GraphBank:
        """Arguments to trace with. No two free sizes of an example are equal, or the tracer would unify them."""
        layers = self._layout.layer_count
        return (
            torch.zeros(len(Phase), layers, 5, self._layout.d_model),
            torch.zeros(tokens, dtype=torch.int64),
            torch.zeros(layers, 6),
            torch.zeros(layers, dtype=torch.int64),
        )

    def _state_example(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Keys, values and packed weights."""
        states = states_like(self.model, self._layout.layer_count), states_like(self.model, self._layout.layer_count)
        return (*states, [] if self._linears is None else self._linears.weights)

    def _shared_shapes(self) -> tuple[Any, ...]:
        """Free sizes of the bank, keys, values and packed weights."""
        states = [{0: FREE, 2: FREE}] * self._layout.layer_count
        weights: list[dict[int, Any]] = [] if self._linears is None else [{} for _ in self._linears.weights]
        return ({2: FREE}, {0: FREE}, {1: FREE}, {}), states, states, weights


class DecodeGraph(_PassGraph):
    """Decodes one token per row."""

    def __init__(self, model: Any, layout: Layout, linears: PackedLinears | None, *, kernels: bool) -> None:
        super().__init__(model, layout, linears, DecodeAttention(kernels=kernels))

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
        """Returns the logits. `span` is as long as attention looks back; keys and values, one (slot, kv_head, position,
        head_dim) per layer, are written in place."""
        self._attention.begin(positions, span, keys, values)
        return (self._logits(token_ids[:, None], positions[:, None], 1, bank, weights)[:, 0],)

    def example(self) -> tuple[Any, ...]:
        """Returns arguments to trace with."""
        ids, positions = torch.tensor([1, 2, 3]), torch.tensor([5, 9, 7])
        return ids, positions, torch.arange(128), self._bank_example(len(ids)), *self._state_example()

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Returns the free sizes: rows, slots, capacity and length."""
        return {0: FREE}, {0: FREE}, {0: FREE}, *self._shared_shapes()


class PrefillGraph(_PassGraph):
    """Computes segments of prompts, packed in one row."""

    def __init__(self, model: Any, layout: Layout, linears: PackedLinears | None, *, kernels: bool) -> None:
        super().__init__(model, layout, linears, PrefillAttention(kernels=kernels))

    def forward(
        self,
        token_ids: Int[Tensor, "token"],
        positions: Int[Tensor, "token"],
        keep: Int[Tensor, "kept"],
        tables: tuple[Int[Tensor, "segment 4"], Int[Tensor, "copy 3"]],
        bank: GraphBank,
        keys: list[Tensor],
        values: list[Tensor],
        weights: list[Tensor],
    ) -> tuple[Float[Tensor, "kept vocab"]]:
        """Returns the logits of the tokens in `keep`. tables: segments and prefix copies of `prefill_attention`."""
        self._attention.begin(*tables, keys, values)
        return (self._logits(token_ids[None], positions[None], keep, bank, weights)[0],)

    def example(self) -> tuple[Any, ...]:
        """Returns arguments to trace with."""
        ids = torch.arange(1, 8)
        tables = torch.tensor([[0, 4, 1, 3], [4, 3, 0, 0]]), torch.zeros(5, 3, dtype=torch.int64)
        keep = torch.tensor([2, 3, 6])
        return ids, ids + 3, keep, tables, self._bank_example(len(ids)), *self._state_example()

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Returns the free sizes: everything but the model's own."""
        return {0: FREE}, {0: FREE}, {0: FREE}, ({0: FREE}, {0: FREE}), *self._shared_shapes()


def make_graph(kind: str, model: Any, layout: Layout, linears: PackedLinears | None, *, kernels: bool) -> Any:
    """Creates the graph of one of KINDS."""
    make = {"decode": DecodeGraph, "prefill": PrefillGraph}[kind]
    return make(model, layout, linears, kernels=kernels).eval()
