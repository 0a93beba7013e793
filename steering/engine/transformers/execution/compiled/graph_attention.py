"""Attention inside compiled graphs, which take the cached keys and values as inputs and write them in place."""

import torch

from steering.engine.transformers.attention.masked import AttentionFunction, Scores, grouped
from steering.engine.transformers.batch import seen_by
from steering.engine.transformers.execution.compiled.callbacks import attention_callback
from steering.engine.transformers.execution.kernels.operations import decode_attention, prefill_attention
from steering.engine.transformers.execution.kernels.processor import supports_slot_attention
from steering.shapes import Bool, Float, Int, Tensor

States = list[Float[Tensor, "slot kv_head position head_dim"]]
"""One tensor per layer."""


class DecodeAttention(AttentionFunction):
    """Attention of a decode graph: one token per row, row r in slot r. kernels: whether our kernels are used."""

    def __init__(self, *, kernels: bool) -> None:
        self._kernels = kernels

    def begin(self, positions: Int[Tensor, "row"], span: Int[Tensor, "length"], keys: States, values: States) -> None:
        """Sets the inputs of a pass. `span` is as long as the longest row looks back."""
        self._positions, self._span, self._keys, self._values = positions, span, keys, values
        self._masks: dict[int | None, Tensor] = {}

    def attended(
        self, layer: int, query: Float[Tensor, "row head query head_dim"], key: Tensor, value: Tensor, scores: Scores
    ) -> Float[Tensor, "row head query head_dim"]:
        """See AttentionFunction."""
        keys, values = self._keys[layer], self._values[layer]
        if self._kernels and supports_slot_attention(query, value):
            return decode_attention(query, key, value, keys, values, self._positions, *scores).transpose(1, 2)
        rows, length = query.shape[0], self._span.shape[0]
        slots = torch.arange(rows, device=query.device)
        keys[slots, :, self._positions] = key[:, :, 0]
        values[slots, :, self._positions] = value[:, :, 0]
        return grouped(query, keys[:rows, :, :length], values[:rows, :, :length], self._mask(scores.window), scores)

    def _mask(self, window: int | None) -> Bool[Tensor, "row 1 1 length"]:
        """Which cached positions each row sees."""
        if window not in self._masks:
            self._masks[window] = seen_by(self._positions, self._span, window)
        return self._masks[window]


class PrefillAttention(AttentionFunction):
    """Attention of a prefill graph: segments of prompts, packed in one row. Without a kernel the graph calls back."""

    def __init__(self, *, kernels: bool) -> None:
        self._kernels = kernels

    def begin(
        self, segments: Int[Tensor, "segment 4"], prefix_copies: Int[Tensor, "copy 3"], keys: States, values: States
    ) -> None:
        """Sets the inputs of a pass, see `prefill_attention`."""
        self._segments, self._prefix_copies, self._keys, self._values = segments, prefix_copies, keys, values

    def attended(
        self, layer: int, query: Float[Tensor, "row head query head_dim"], key: Tensor, value: Tensor, scores: Scores
    ) -> Float[Tensor, "row head query head_dim"]:
        """See AttentionFunction."""
        if not (self._kernels and supports_slot_attention(query, value)):
            return attention_callback(query, key, value, layer, *scores).transpose(1, 2)
        states = self._keys[layer], self._values[layer]
        found = prefill_attention(query, key, value, *states, self._segments, self._prefix_copies, *scores)
        return found.transpose(1, 2)
